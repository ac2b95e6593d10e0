"""Transformer blocks, mixing of close neighbours, the body of every denoiser. B batch, N or K positions, W width."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fewstep.nn.attention import Context, CrossAttention, KeyValueCache, SelfAttention


class FeedForward(nn.Module):
    """Two linear maps with a GELU between them, of every position of (B, N, W) alone."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """The same shape as ``x``."""
        return self.down(F.gelu(self.up(x), approximate="tanh"))


class Block(nn.Module):
    """Pre-norm transformer block; with ``cross`` it also attends to a context.

    With ``local_reach`` each position first mixes with its neighbours (:class:`LocalMixing`), later ones too.
    """

    def __init__(
        self, width: int, num_heads: int, *, causal: bool = False, cross: bool = False, local_reach: int = 0
    ) -> None:
        super().__init__()
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
    in adaLN-Zero, would have to open first, which costs much of a run of a thousand steps.
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

    def __init__(self, width: int, max_frequency: float = 1_000.0) -> None:
        super().__init__()
        highest = torch.log10(torch.tensor(max_frequency, dtype=torch.float32)).item()
        frequencies = torch.logspace(0, highest, 64, dtype=torch.float32)
        self.register_buffer("frequencies", frequencies, persistent=False)
        self.mlp = nn.Sequential(nn.Linear(2 * 64, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, t: Tensor) -> Tensor:
        """Embed ``t`` (B,)."""
        angles = t.float()[:, None] * self.frequencies
        return self.mlp(torch.cat([angles.cos(), angles.sin()], dim=-1))


def initialise(module: nn.Module) -> None:
    """Normal(0, 0.02) for linear and embedding weights, zeros for biases; call it once, at construction."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear | nn.Embedding):
            nn.init.normal_(layer.weight, std=0.02)
        if isinstance(layer, nn.Linear) and layer.bias is not None:
            nn.init.zeros_(layer.bias)


class AdaptiveTransformer(nn.Module):
    """Stack of adaptive blocks over (B, K, W), conditioned on one time ``t`` or on two, ``t`` and ``s``.

    With ``two_times`` the second time enters as the distance ``s - t`` (as in mean flow, arXiv:2505.13447, section 4).
    Times enter as sines and cosines of 1 to ``max_frequency`` radians per unit of time. The usual 1000 makes the
    derivative in time large and rough: objectives that train on it need a low one (docs/findings/objectives.md; for the
    same reason arXiv:2410.11081, section 4.1, gives up fast Fourier features).
    """

    def __init__(
        self,
        width: int,
        depth: int,
        num_heads: int,
        *,
        two_times: bool = False,
        local_reach: int = 2,
        max_frequency: float = 1_000.0,
    ) -> None:
        super().__init__()
        if not 1 <= max_frequency < math.inf:
            raise ValueError(f"max_frequency is {max_frequency}: expected a finite number of at least 1 (radians)")
        self.time = TimeEmbedding(width, max_frequency=max_frequency)
        self.distance = TimeEmbedding(width, max_frequency=max_frequency) if two_times else None
        blocks = [AdaptiveBlock(width, num_heads, local_reach=local_reach) for _ in range(depth)]
        self.blocks = nn.ModuleList(blocks)
        self.norm = nn.LayerNorm(width)
        initialise(self)
        for block in blocks:
            nn.init.zeros_(block.modulation.weight)

    def ignore_second_time(self) -> None:
        """Make the output independent of where a jump ends, until training changes it."""
        assert self.distance is not None, "this network has one time only"
        for parameter in self.distance.mlp[-1].parameters():
            nn.init.zeros_(parameter)

    def forward(self, h: Tensor, t: Tensor, s: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """``h`` (B, K, W), times (B,), ``mask`` (B, K) bool. Returns (B, K, W), normed."""
        condition = self.time(t)
        if self.distance is not None:
            condition = condition + self.distance(torch.zeros_like(t) if s is None else s - t)
        elif s is not None:
            raise ValueError("this denoiser has one time only: build it with two_times=True to pass s")
        condition = F.silu(condition).to(h.dtype)
        for block in self.blocks:
            h = block(h, condition, mask)
        return self.norm(h)


class _Mixing(torch.autograd.Function):
    """y_n = sum_s w_s x_(n + s - reach), for x (B, N, W), w (2 reach + 1, W), zero beyond the ends.

    Its derivatives are itself, so it can be differentiated again, in both modes. ``F.conv2d(groups=W)`` is as fast, but
    rounds differently in bf16, so that seeded runs would change.
    """

    @staticmethod
    def forward(x: Tensor, weight: Tensor) -> Tensor:
        reach = len(weight) // 2
        mixed = x * weight[reach]
        for shift in range(-min(reach, x.shape[1] - 1), min(reach, x.shape[1] - 1) + 1):
            if shift:
                target, source = _overlap(mixed, x, shift)
                target.addcmul_(source, weight[reach + shift])
        return mixed

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        of_x, of_weight = ctx.needs_input_grad
        return (
            _Mixing.apply(slope, weight.flip(0)) if of_x else None,
            _correlation(slope, x, len(weight)) if of_weight else None,
        )

    @staticmethod
    def jvp(ctx: Any, x_tangent: Tensor | None, weight_tangent: Tensor | None) -> Tensor:
        x, weight = ctx.saved_tensors
        tangent = torch.zeros_like(x) if x_tangent is None else _Mixing.apply(x_tangent, weight)
        return tangent if weight_tangent is None else tangent + _Mixing.apply(x, weight_tangent)


def _overlap(target: Tensor, source: Tensor, shift: int) -> tuple[Tensor, Tensor]:
    """Where position n of ``target`` meets position n + ``shift`` of ``source``; both (B, N, W)."""
    length = target.shape[1]
    low, high = max(0, -shift), length - max(0, shift)
    return target[:, low:high], source[:, low + shift : high + shift]


def _correlation(slope: Tensor, x: Tensor, taps: int) -> Tensor:
    """sum_bn slope_n x_(n + s - reach) for every tap s: the derivative by the weights, (taps, W)."""
    rows = []
    for shift in range(-(taps // 2), taps // 2 + 1):
        if abs(shift) >= x.shape[1]:
            rows.append(torch.zeros_like(x[0, 0]))
            continue
        ours, theirs = _overlap(slope, x, shift)
        rows.append((ours * theirs).sum((0, 1)))
    return torch.stack(rows)


class LocalMixing(nn.Module):
    """Depthwise convolution over ``reach`` positions on either side, added to its input by the caller.

    Attention must first learn to find the neighbours before a denoiser can use them, which takes most of a short run;
    this gives them from the first step (as the Canon layers of "Physics of Language Models" 4.1 do for causal models).
    """

    def __init__(self, width: int, reach: int = 2) -> None:
        super().__init__()
        self.reach = reach
        self.weight = nn.Parameter(torch.empty(2 * reach + 1, width))
        nn.init.normal_(self.weight, std=(2 * reach + 1) ** -0.5)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """``x`` (B, N, W), ``mask`` (B, N) bool. Padding counts as zero. Returns (B, N, W)."""
        if mask is not None:
            x = x * mask[..., None].to(x.dtype)
        return _Mixing.apply(x, self.weight.to(x.dtype))
