"""Measurements of a model in training, apart because they load the whole of ``fewstep.evaluation``."""

import copy
import math
from collections.abc import Collection, Sequence
from typing import Any

import torch

from fewstep.data import PreparedCorpus, vocabulary_size
from fewstep.diagnostics.decoding import rms
from fewstep.diagnostics.result import Result
from fewstep.errors import UserError
from fewstep.evaluation.baselines import held_out_blocks
from fewstep.evaluation.measurement import Measurement, choose
from fewstep.evaluation.measurements import MEASUREMENTS
from fewstep.evaluation.subject import MIN_EXAMPLES, Subject, text_subject
from fewstep.model import SavedModel
from fewstep.types import TokenBatch

NUM_BLOCKS = 256
"""Held-out blocks that are read, at most."""
MAX_LOGITS = 2**28
"""Of one call of the readout: a large vocabulary takes fewer blocks."""


def chosen_measurements(names: Sequence[str] | None) -> dict[str, Measurement]:
    """The measurements ``names``, all for None. Raises ``UserError`` for an unknown name."""
    try:
        return choose(MEASUREMENTS, names)
    except UserError as error:
        raise UserError(f"diagnostics.measurements: {error}") from None


def check_parts(stage: str, names: Sequence[str] | None, parts: Collection[str]) -> None:
    """Raise ``UserError`` for a measurement of ``names`` that needs a part that the ``stage`` does not have."""
    for name, measurement in chosen_measurements(names).items() if names else ():
        if missing := [part for part in measurement.parts if part not in parts]:
            raise UserError(
                f"diagnostics.measurements: {name} needs {missing[0]}, which the stage {stage} has not: leave it out"
            )


def measure(stage: str, names: Sequence[str] | None, subject: Subject) -> tuple[Result, ...]:
    """The results of the measurements ``names``, each in its brief version; None: those of the ``stage``."""
    chosen = chosen_measurements(names)
    if names is None:
        chosen = {name: measurement for name, measurement in chosen.items() if stage in measurement.stages}
    check_parts(stage, list(chosen), subject.parts)
    return tuple(result for measurement in chosen.values() for result in measurement.run(subject, "training"))


def copy_of(bundle: SavedModel, device: torch.device) -> SavedModel:
    """The model in float32 and evaluation mode on ``device``, with weights of its own that need no gradient."""
    parts: dict[str, Any] = {name: copy.deepcopy(part).float().eval() for name, part in bundle.parts().items()}
    for part in parts.values():
        part.requires_grad_(False)
    return SavedModel(bundle.tokenizer, bundle.identity, **parts).to(device)


def make_brief_subject(
    bundle: SavedModel, corpus: PreparedCorpus, device: torch.device, num_examples: int, num_positions: int, seed: int
) -> Subject:
    """A copy of the model with held-out blocks without padding.

    Raises ``UserError`` if a part, the text or a scale to measure by is missing.
    """
    if missing := [name for name in ("autoencoder", "readout") if name not in bundle.parts()]:
        raise UserError(f"the model has no {' and no '.join(missing)}")
    affordable = MAX_LOGITS // (bundle.identity.block_size * vocabulary_size(bundle.tokenizer))
    count = min(NUM_BLOCKS, len(corpus.validation), max(affordable, MIN_EXAMPLES))
    if count < MIN_EXAMPLES:
        raise UserError(f"the number of held-out blocks is {count}, at least {MIN_EXAMPLES} are needed")
    tokens = held_out_blocks(corpus.validation, count)
    tokens = TokenBatch(tokens.ids.to(device), tokens.mask.to(device))
    whole = int(tokens.mask.all(1).sum())
    if whole < MIN_EXAMPLES:
        raise UserError(f"{whole} held-out blocks have no padding, at least {MIN_EXAMPLES} are needed")
    subject = text_subject(
        copy_of(bundle, device),
        tokens,
        num_examples=min(num_examples, whole),
        num_positions=min(num_positions, tokens.ids.shape[1]),
        seed=seed,
    )
    if not 0 < rms(subject.z) < math.inf:
        raise UserError(f"the latents' rms is {rms(subject.z)}, so there is no scale to measure by")
    return subject
