"""Latents to tokens: parallel readouts, the commitment head, and the language model it is measured by."""

from fewstep.readouts.categorical import draw_tokens, token_nats
from fewstep.readouts.causal import CausalTransformer
from fewstep.readouts.commitment import CommitmentHead
from fewstep.readouts.decoding import decode_cached, decode_naive
from fewstep.readouts.language_model import LanguageModel
from fewstep.readouts.parallel import LinearReadout, ParallelReadout, TransformerReadout, token_accuracy

__all__ = [
    "CausalTransformer",
    "CommitmentHead",
    "LanguageModel",
    "LinearReadout",
    "ParallelReadout",
    "TransformerReadout",
    "decode_cached",
    "decode_naive",
    "draw_tokens",
    "token_accuracy",
    "token_nats",
]
