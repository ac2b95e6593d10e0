"""Measurements of a model in training, apart because they load the whole of ``fewstep.evaluation``."""

import copy
import math
from collections.abc import Collection, Sequence
from dataclasses import replace

import torch

from fewstep.data.corpus import PreparedCorpus
from fewstep.data.tokenizer import vocabulary_size
from fewstep.diagnostics.decoding import rms
from fewstep.errors import UserError
from fewstep.evaluation.baselines import held_out_blocks
from fewstep.evaluation.measurement import Measurement, choose
from fewstep.evaluation.measurements import MEASUREMENTS
from fewstep.evaluation.subject import MIN_EXAMPLES, Subject, text_subject
from fewstep.model import SavedModel

NUM_BLOCKS = 256
"""Held-out blocks that are read, at most."""
MAX_LOGITS = 2**28
"""Of one call of the readout: a large vocabulary takes fewer blocks."""


def chosen_measurements(stage: str, names: Sequence[str] | None, parts: Collection[str]) -> dict[str, Measurement]:
    """The measurements ``names``; None: those of the ``stage``.

    Raises ``UserError`` for an unknown name, or a measurement that needs a part that is not among ``parts``.
    """
    if names is None:
        return {name: measurement for name, measurement in MEASUREMENTS.items() if stage in measurement.stages}
    try:
        chosen = choose(MEASUREMENTS, names)
    except UserError as error:
        raise UserError(f"diagnostics.measurements: {error}") from None
    for name, measurement in chosen.items():
        if missing := [part for part in measurement.parts if part not in parts]:
            raise UserError(
                f"diagnostics.measurements: {name} needs {missing[0]}, which the stage {stage} has not: leave it out"
            )
    return chosen


def make_brief_subject(
    bundle: SavedModel, corpus: PreparedCorpus, device: torch.device, num_examples: int, num_positions: int, seed: int
) -> Subject:
    """A copy of the model, in float32, with held-out blocks without padding.

    Raises ``UserError`` if a part, the text or a scale to measure by is missing.
    """
    bundle.require("autoencoder", "readout")
    affordable = MAX_LOGITS // (bundle.identity.block_size * vocabulary_size(bundle.tokenizer))
    count = min(NUM_BLOCKS, len(corpus.validation), max(affordable, MIN_EXAMPLES))
    tokens = held_out_blocks(corpus.validation, count)
    parts = {name: copy.deepcopy(part).float().requires_grad_(False) for name, part in bundle.parts().items()}
    subject = text_subject(
        replace(bundle, **parts).to(device),
        tokens,
        num_examples=num_examples,
        num_positions=min(num_positions, tokens.ids.shape[1]),
        seed=seed,
        at_most=True,
    )
    if not 0 < rms(subject.z) < math.inf:
        raise UserError(f"the latents' rms is {rms(subject.z)}, so there is no scale to measure by")
    return subject
