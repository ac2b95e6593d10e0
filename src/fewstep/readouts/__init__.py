"""Latents to tokens: parallel readouts, the commitment head, and the language model it is measured by."""

from fewstep.readouts.categorical import MAX_LOGITS, check_draw, draw_tokens, hidden_nats, token_nats
from fewstep.readouts.causal import CausalTransformer
from fewstep.readouts.commitment import CommitmentHead
from fewstep.readouts.decoding import decode_cached, decode_naive
from fewstep.readouts.ending import Ending, tokens_to_first_end
from fewstep.readouts.language_model import LanguageModel
from fewstep.readouts.parallel import LinearReadout, ParallelReadout, TransformerReadout, token_accuracy

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
    "decode_naive",
    "draw_tokens",
    "hidden_nats",
    "token_accuracy",
    "token_nats",
    "tokens_to_first_end",
]
