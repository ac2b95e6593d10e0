"""Transformer blocks. B batch, N positions, W width."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fewstep.nn.attention import Context, CrossAttention, KeyValueCache, SelfAttention
from fewstep.nn.local import LocalMixing


class FeedForward(nn.Module):
    """Two linear maps with a GELU between them, (B, N, W) to (B, N, W)."""

    def __init__(self, width: int, expansion: int = 4) -> None:
        super().__init__()
        self.up = nn.Linear(width, expansion * width)
        self.down = nn.Linear(expansion * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Map every position of ``x`` (B, N, W) alone."""
        return self.down(F.gelu(self.up(x), approximate="tanh"))


class Block(nn.Module):
    """Pre-norm transformer block; with ``cross`` it also attends to a context.

    With ``local_reach`` each position first mixes with that many neighbours on either side (:class:`LocalMixing`); a
    causal block must not.
    """

    def __init__(
        self, width: int, num_heads: int, *, causal: bool = False, cross: bool = False, local_reach: int = 0
    ) -> None:
        super().__init__()
        if causal and local_reach:
            raise ValueError(f"a causal block must not see later neighbours: local_reach is {local_reach}, expected 0")
        self.local_norm = nn.LayerNorm(width) if local_reach else None
        self.local = LocalMixing(width, local_reach) if local_reach else None
        self.attention_norm = nn.LayerNorm(width)
        self.attention = SelfAttention(width, num_heads, causal=causal)
        self.cross_norm = nn.LayerNorm(width) if cross else None
        self.cross = CrossAttention(width, num_heads) if cross else None
        self.mlp_norm = nn.LayerNorm(width)
        self.mlp = FeedForward(width)

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        *,
        context: Context | None = None,
        cache: KeyValueCache | None = None,
    ) -> Tensor:
        """``x`` (B, N, W), ``mask`` (B, N), true at positions that may be seen. Returns (B, N, W).

        With a ``cache`` from :meth:`new_cache` its context replaces ``context``.
        """
        rotation = None if cache is None else cache.upcoming(x.shape[1])
        seen = context if cache is None else cache.context
        if self.local is not None and self.local_norm is not None:
            x = x + self.local(self.local_norm(x), mask)
        x = x + self.attention(self.attention_norm(x), mask, cache)
        if self.cross is not None and self.cross_norm is not None and seen is not None:
            x = x + self.cross(self.cross_norm(x), seen, rotation=rotation)
        return x + self.mlp(self.mlp_norm(x))

    def new_cache(self, room: int, context: Context | None = None) -> KeyValueCache:
        """An empty cache for up to ``room`` positions, with the keys and values of ``context`` in it."""
        projected = None if self.cross is None or context is None else self.cross.project(context).contiguous()
        return self.attention.new_cache(room, projected)


class AdaptiveBlock(nn.Module):
    """Block whose norms are scaled, shifted and gated by a condition (adaLN, arXiv:2212.09748, section 3.2).

    The modulation starts at zero and the gates at one, so a fresh block is a plain one. Gates that start at zero, as
    in adaLN-Zero, would have to open first, which costs much of a run of a thousand steps. Before attention each
    position mixes with its ``local_reach`` neighbours on either side (:class:`LocalMixing`).
    """

    def __init__(self, width: int, num_heads: int, *, local_reach: int = 2) -> None:
        super().__init__()
        self.local_norm = nn.LayerNorm(width)
        self.local = LocalMixing(width, local_reach)
        self.attention_norm = nn.LayerNorm(width, elementwise_affine=False)
        self.attention = SelfAttention(width, num_heads)
        self.mlp_norm = nn.LayerNorm(width, elementwise_affine=False)
        self.mlp = FeedForward(width)
        self.modulation = nn.Linear(width, 6 * width)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)

    def forward(self, x: Tensor, condition: Tensor, mask: Tensor | None = None) -> Tensor:
        """``x`` (B, N, W), ``condition`` (B, W), ``mask`` (B, N). Returns (B, N, W)."""
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = self.modulation(condition)[:, None].chunk(6, dim=-1)
        x = x + self.local(self.local_norm(x), mask)
        x = x + (1 + gate_a) * self.attention(self.attention_norm(x) * (1 + scale_a) + shift_a, mask)
        return x + (1 + gate_m) * self.mlp(self.mlp_norm(x) * (1 + scale_m) + shift_m)


def transformer_blocks(module: nn.Module) -> list[Block | AdaptiveBlock]:
    """All blocks in ``module``, for compiling or recomputing them."""
    return [part for part in module.modules() if isinstance(part, Block | AdaptiveBlock)]


class TimeEmbedding(nn.Module):
    """Time (B,) in [0, 1] to (B, W): Fourier features, geometric in frequency, through a small network."""

    frequencies: Tensor

    def __init__(self, width: int, num_features: int = 128, max_frequency: float = 1_000.0) -> None:
        super().__init__()
        frequencies = torch.logspace(0, torch.log10(torch.tensor(max_frequency)).item(), num_features // 2)
        self.register_buffer("frequencies", frequencies, persistent=False)
        self.mlp = nn.Sequential(nn.Linear(num_features, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, t: Tensor) -> Tensor:
        """Embed ``t`` (B,)."""
        angles = t.float()[:, None] * self.frequencies
        return self.mlp(torch.cat([angles.cos(), angles.sin()], dim=-1))


def initialise(module: nn.Module) -> None:
    """Normal(0, 0.02) for linear and embedding weights, zeros for biases; call it once, at construction.

    Reset layers that must start at zero after this call.
    """
    for layer in module.modules():
        if isinstance(layer, nn.Linear | nn.Embedding):
            nn.init.normal_(layer.weight, std=0.02)
        if isinstance(layer, nn.Linear) and layer.bias is not None:
            nn.init.zeros_(layer.bias)
