"""What diagnostics look at during training: a copy of the model, and held-out text."""

import copy
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from fewstep.bundle import ModelBundle
from fewstep.diagnostics import rms
from fewstep.evaluation import Subject, held_out_blocks, make_subject
from fewstep.pipeline import TextGenerator
from fewstep.training.stage import Stage
from fewstep.types import TokenBatch

NUM_BLOCKS = 256
"""Held-out blocks that are read at most."""
MIN_EXAMPLES = 2
"""One example has no interval."""
NUM_LOGITS = 2**28
"""Logits of one evaluation of a readout, at most: fewer blocks are taken where all would have more."""

Tell = Callable[[str], None]


@dataclass(frozen=True)
class Material:
    """A copy of the model as ``bundle``, held-out ``tokens`` (N, L), and the ``subject``: some of them, none padded.

    ``subject`` is None where there are too few such blocks.
    """

    bundle: ModelBundle
    tokens: TokenBatch
    subject: Subject | None


@contextmanager
def outside_of_training(device: torch.device) -> Iterator[None]:
    """Neither inference mode, whose tensors no derivative takes, nor gradients, nor a lower precision."""
    with torch.inference_mode(False), torch.no_grad(), torch.autocast(device.type, enabled=False):
        yield


def copied(bundle: ModelBundle) -> ModelBundle:
    """The same model in float32 and evaluation mode, with weights of its own that ask for no gradient."""
    parts: dict[str, Any] = {name: copy.deepcopy(part).float().eval() for name, part in bundle.parts().items()}
    for part in parts.values():
        part.requires_grad_(False)
    return ModelBundle(bundle.tokenizer, bundle.identity, **parts)


def material(
    stage: Stage,
    bundle: ModelBundle,
    needed: tuple[str, ...],
    num_examples: int,
    num_positions: int,
    seed: int,
    tell: Tell,
) -> Material | None:
    """A copy of ``bundle``, the model of ``stage``, on its device, and its text.

    None where a part or held-out blocks are missing, which ``tell`` is told.
    """
    bundle = copied(bundle).to(stage.device)
    if missing := [name for name in needed if name not in bundle.parts()]:
        tell(f"no diagnostics: the model has no {' and no '.join(missing)}")
        return None
    validation = stage.data.corpus.validation
    affordable = NUM_LOGITS // (bundle.identity.block_size * len(bundle.tokenizer))
    count = min(NUM_BLOCKS, len(validation), max(affordable, MIN_EXAMPLES))
    if count < MIN_EXAMPLES:
        tell(f"no diagnostics: the number of held-out blocks is {count}, at least {MIN_EXAMPLES} are needed")
        return None
    tokens, _ = held_out_blocks(validation, count)
    tokens = TokenBatch(tokens.ids.to(stage.device), tokens.mask.to(stage.device))
    found = min(num_examples, int(tokens.mask.all(1).sum()))
    if found < num_examples:
        tell(f"diagnostics look at {found} held-out blocks, not at {num_examples}: no more are there without padding")
    if found < MIN_EXAMPLES:
        return Material(bundle, tokens, None)
    subject = make_subject(
        TextGenerator(bundle),
        tokens,
        num_examples=found,
        num_positions=min(num_positions, tokens.ids.shape[1]),
        seed=seed,
    )
    if not 0 < rms(subject.z) < math.inf:
        tell(f"no diagnostics: the latents' rms is {rms(subject.z)}, so there is no scale to measure by")
        return None
    return Material(bundle, tokens, subject)


def share(subject: Subject, divisor: int) -> Subject:
    """The first of its examples, one of ``divisor``, but at least two."""
    return subject.first(max(MIN_EXAMPLES, len(subject.z) // divisor))
