"""Network parts: attention, blocks, time embedding."""

from fewstep.nn.attention import Context, CrossAttention, KeyValueCache, ProjectedContext, Rotary, SelfAttention
from fewstep.nn.backbone import AdaptiveTransformer
from fewstep.nn.blocks import AdaptiveBlock, Block, FeedForward, TimeEmbedding, initialise, transformer_blocks
from fewstep.nn.local import LocalMixing

__all__ = [
    "AdaptiveBlock",
    "AdaptiveTransformer",
    "Block",
    "Context",
    "CrossAttention",
    "FeedForward",
    "KeyValueCache",
    "LocalMixing",
    "ProjectedContext",
    "Rotary",
    "SelfAttention",
    "TimeEmbedding",
    "initialise",
    "transformer_blocks",
]
