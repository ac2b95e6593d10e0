"""Network parts: attention, blocks, time embedding."""

from fewstep.nn.attention import Context, CrossAttention, KeyValueCache, ProjectedContext, SelfAttention
from fewstep.nn.blocks import (
    AdaptiveBlock,
    AdaptiveTransformer,
    Block,
    FeedForward,
    TimeEmbedding,
    initialise,
    transformer_blocks,
)
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
    "SelfAttention",
    "TimeEmbedding",
    "initialise",
    "transformer_blocks",
]
