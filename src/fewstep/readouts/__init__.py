"""Latents to tokens: parallel readouts, the commitment head, and the language model it is measured by."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
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
from fewstep.readouts.parallel import LinearReadout, ParallelReadout, TransformerReadout, as_it_is, token_accuracy
from fewstep.types import Ending

__all__ = [
    "MAX_LOGITS",
    "READOUTS",
    "CausalTransformer",
    "CommitmentHead",
    "Ending",
    "LanguageModel",
    "LinearReadout",
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

    ``open`` builds it from the part and the model's trust level (rms): anything with the ``generate`` of
    :class:`fewstep.types.Readout`. ``passes`` counts forward passes for L tokens.
    """

    part: str
    temperature: float
    open: Callable[[Any, float], Any]
    passes: Callable[[int], int]


READOUTS: dict[str, ReadoutChoice] = {
    # Each position on its own: drawing them independently would only add noise, so the likeliest token is taken.
    "parallel": ReadoutChoice("readout", 0.0, as_it_is, passes=lambda num_tokens: 1),
    "head": ReadoutChoice("head", 1.0, CommitmentHead, passes=lambda num_tokens: num_tokens),
    "head_off": ReadoutChoice("head", 1.0, partial(CommitmentHead, sees_tokens=False), passes=lambda num_tokens: 1),
}
"""The ways from latents to tokens, by name. ``head_off``, for the ablation: the head without its earlier tokens."""
