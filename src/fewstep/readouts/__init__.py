"""Latents to tokens: parallel readouts, the commitment head, and the language model it is measured by."""

from fewstep.readouts.categorical import (
    MAX_LOGITS,
    check_draw,
    draw_tokens,
    hidden_nats,
    token_nats,
    tokens_to_first_end,
)
from fewstep.readouts.causal import CausalTransformer, LanguageModel, decode_cached
from fewstep.readouts.head import CommitmentHead
from fewstep.readouts.parallel import LinearReadout, ParallelReadout, TransformerReadout, token_accuracy
from fewstep.types import Ending

__all__ = [
    "MAX_LOGITS",
    "CausalTransformer",
    "CommitmentHead",
    "Ending",
    "LanguageModel",
    "LinearReadout",
    "ParallelReadout",
    "TransformerReadout",
    "check_draw",
    "decode_cached",
    "draw_tokens",
    "hidden_nats",
    "token_accuracy",
    "token_nats",
    "tokens_to_first_end",
]
