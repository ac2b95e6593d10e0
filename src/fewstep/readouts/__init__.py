"""Latents to tokens: parallel readouts, the commitment head, and the language model it is measured by."""

from collections.abc import Callable
from dataclasses import dataclass
from operator import methodcaller
from typing import Any

from fewstep.readouts.categorical import (
    MAX_LOGITS,
    TokenDraw,
    check_draw,
    cut_at_end,
    draw_tokens,
    token_nats,
    tokens_to_first_end,
)
from fewstep.readouts.causal import CausalTransformer, LanguageModel, decode_cached
from fewstep.readouts.head import CommitmentHead
from fewstep.readouts.mask_predict import MaskPredictReadout
from fewstep.readouts.parallel import LinearReadout, ParallelReadout, TransformerReadout, token_accuracy
from fewstep.types import Ending

__all__ = [
    "MAX_LOGITS",
    "READOUTS",
    "CausalTransformer",
    "CommitmentHead",
    "Ending",
    "LanguageModel",
    "LinearReadout",
    "MaskPredictReadout",
    "ParallelReadout",
    "ReadoutChoice",
    "TokenDraw",
    "TransformerReadout",
    "check_draw",
    "cut_at_end",
    "decode_cached",
    "draw_tokens",
    "token_accuracy",
    "token_nats",
    "tokens_to_first_end",
]


@dataclass(frozen=True)
class ReadoutChoice:
    """One way to read latents: the part of a model that it needs, its usual temperature, and its cost.

    ``open`` builds it from a :class:`fewstep.model.SavedModel` that has the part: anything with the ``generate`` of
    :class:`fewstep.types.Readout`. ``passes`` counts forward passes for L tokens.
    """

    part: str
    temperature: float
    open: Callable[[Any], Any]
    passes: Callable[[int], int]


def open_mask_predict(model: Any) -> MaskPredictReadout:
    """The model's parallel readout, read twice."""
    return MaskPredictReadout(model.reader(), model.encoder(), padded=bool(model.identity.length_counts))


READOUTS: dict[str, ReadoutChoice] = {
    # Each position on its own: drawing them independently would only add noise, so the likeliest token is taken.
    "parallel": ReadoutChoice("readout", 0.0, methodcaller("reader"), passes=lambda num_tokens: 1),
    "mask_predict": ReadoutChoice("readout", 0.0, open_mask_predict, passes=lambda num_tokens: 3),
    "head": ReadoutChoice("head", 1.0, methodcaller("commitment_head"), passes=lambda num_tokens: num_tokens),
    "head_off": ReadoutChoice("head", 1.0, methodcaller("commitment_head", sees_tokens=False), lambda num_tokens: 1),
}
"""The ways from latents to tokens, by name. ``head_off``, for the ablation: the head without its earlier tokens."""
