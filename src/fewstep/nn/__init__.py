"""Network parts: attention, blocks, time embedding."""

from fewstep.nn.attention import Context, CrossAttention, KeyValueCache, SelfAttention
from fewstep.nn.blocks import AdaptiveTransformer, Block, LocalMixing, TimeEmbedding, initialise, transformer_blocks

__all__ = [
    "AdaptiveTransformer",
    "Block",
    "Context",
    "CrossAttention",
    "KeyValueCache",
    "LocalMixing",
    "SelfAttention",
    "TimeEmbedding",
    "initialise",
    "transformer_blocks",
]
