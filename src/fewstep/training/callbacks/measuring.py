"""Measurements of a model in training. A file of its own because it loads the whole of ``fewstep.evaluation``: the
callback imports it when something is measured."""

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch

from fewstep.data import PreparedCorpus
from fewstep.diagnostics import Diagnostic, rms
from fewstep.errors import UserError
from fewstep.evaluation import Subject, held_out_blocks, make_subject, measurements
from fewstep.evaluation.measurements import MEASUREMENTS, DabiEffort
from fewstep.model import SavedModel
from fewstep.pipeline import TextGenerator
from fewstep.types import TokenBatch

NUM_BLOCKS = 256
"""Held-out blocks that are read, at most."""
MIN_EXAMPLES = 2
"""One example has no interval."""
MAX_LOGITS = 2**28
"""Of one call of the readout: a large vocabulary takes fewer blocks."""

LOCAL = DabiEffort(radii=(), num_probes=4)
TUBE_TIMES = (0.1, 0.3, 0.5, 0.7, 0.8, 0.9)
STIFFNESS_TIMES = (0.6, 0.95)

Results = tuple[Diagnostic, ...]


def share(subject: Subject, divisor: int, num_positions: int | None = None) -> Subject:
    """One in ``divisor`` of the examples, at least two, with their first positions."""
    return subject.first(max(MIN_EXAMPLES, len(subject.z) // divisor), num_positions)


def cci(subject: Subject) -> Results:
    """CCI at generated latents; without a denoiser at data with noise of the head's trust level."""
    bundle = subject.generator.bundle
    levels = () if bundle.denoiser is not None else (bundle.identity.trust_level,)
    return measurements.measure_cci(share(subject, 8), levels=levels)


BRIEF: dict[str, dict[str, Callable[[Subject], Results]]] = {
    "autoencoder": {
        "dabi": lambda s: measurements.measure_dabi(share(s, 1, 1), effort=LOCAL, segments=False),
        "boundary_distance": measurements.measure_boundary_distance,
        "dabi_flip": lambda s: measurements.measure_dabi_flip(share(s, 2), num_isotropic=6),
        "noise_robustness": lambda s: measurements.measure_noise_robustness(share(s, 2)),
    },
    "flow": {
        "dabi_generated": lambda s: measurements.measure_dabi_generated(share(s, 2, 1), effort=LOCAL),
        "tube": lambda s: measurements.measure_tube(share(s, 2), times=TUBE_TIMES),
        "stiffness": lambda s: measurements.measure_stiffness(share(s, 4), times=STIFFNESS_TIMES, num_iterations=4),
        "late_flips": lambda s: measurements.measure_late_flips(share(s, 2)),
        "commitment": lambda s: measurements.measure_commitment(share(s, 4), num_continuations=2, every=3),
    },
    "head": {
        "cci": cci,
        "dabi_commit": lambda s: measurements.measure_dabi_commit(share(s, 4, 1), effort=LOCAL),
    },
}
"""Stage -> measurements, on so few examples, times and iterations that they add less than a tenth to a stage of the
quickstart; ``fewstep diagnose`` makes them in full."""


def measure(stage: str, names: Sequence[str] | None, subject: Subject) -> Results:
    """The results of the measurements ``names``; None: those of the ``stage``.

    A name is one of the stage, measured briefly, or any other one, measured in full. Raises ``UserError`` for an
    unknown one.
    """
    brief = BRIEF.get(stage, {})
    results: list[Diagnostic] = []
    for name in brief if names is None else names:
        run = brief.get(name) or MEASUREMENTS[name].run
        results += run(subject)
    return tuple(results)


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
    affordable = MAX_LOGITS // (bundle.identity.block_size * len(bundle.tokenizer))
    count = min(NUM_BLOCKS, len(corpus.validation), max(affordable, MIN_EXAMPLES))
    if count < MIN_EXAMPLES:
        raise UserError(f"the number of held-out blocks is {count}, at least {MIN_EXAMPLES} are needed")
    tokens, _ = held_out_blocks(corpus.validation, count)
    tokens = TokenBatch(tokens.ids.to(device), tokens.mask.to(device))
    whole = int(tokens.mask.all(1).sum())
    if whole < MIN_EXAMPLES:
        raise UserError(f"{whole} held-out blocks have no padding, at least {MIN_EXAMPLES} are needed")
    subject = make_subject(
        TextGenerator(copy_of(bundle, device)),
        tokens,
        num_examples=min(num_examples, whole),
        num_positions=min(num_positions, tokens.ids.shape[1]),
        seed=seed,
    )
    if not 0 < rms(subject.z) < math.inf:
        raise UserError(f"the latents' rms is {rms(subject.z)}, so there is no scale to measure by")
    return subject
