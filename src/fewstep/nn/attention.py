"""Multi-head attention with rotary positions and a key-value cache. B batch, H heads, Q queries, N keys, W width."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

SHORT_SEQUENCE = 128
"""Keys up to which attention on a CPU is written out."""


@dataclass(frozen=True)
class Rotation:
    """Rotary tables of N positions, both (N, head_dim): ``cos`` is (cos, cos), ``sin`` is (-sin, sin) of the angles."""

    cos: Tensor
    sin: Tensor

    def rotate(self, x: Tensor) -> Tensor:
        """Rotate ``x`` (..., N, head_dim), each position by its own angles. Same shape and dtype."""
        a, b = x.chunk(2, dim=-1)
        return x * self.cos.to(x.dtype) + torch.cat([b, a], -1) * self.sin.to(x.dtype)


def rotary(positions: Tensor, head_dim: int, like: Tensor, base: float = 10_000.0) -> Rotation:
    """Rotary position embedding (arXiv:2104.09864, eq. 15) of ``positions`` (N,), which may be fractions.

    On the device of ``like`` and in its dtype, but at least float32.
    """
    half = head_dim // 2
    dtype = torch.promote_types(like.dtype, torch.float32)
    frequencies = base ** (-torch.arange(half, device=like.device, dtype=dtype) / half)
    angles = positions.to(like.device, dtype)[:, None] * frequencies
    cos, sin = angles.cos(), angles.sin()
    return Rotation(torch.cat([cos, cos], -1), torch.cat([-sin, sin], -1))


def head_dim_of(width: int, num_heads: int) -> int:
    """Width of a head; ``ValueError`` unless the heads divide the width into even numbers."""
    if width % num_heads:
        raise ValueError(f"width {width} is not divisible by num_heads {num_heads}")
    if width // num_heads % 2:
        raise ValueError(
            f"rotary positions need an even head dimension, got {width // num_heads}: change width or num_heads"
        )
    return width // num_heads


def attend(q: Tensor, k: Tensor, v: Tensor, seen: Tensor | None, *, causal: bool = False) -> Tensor:
    """Softmax attention of queries (B, H, Q, d) to keys and values (B, H, N, d), (B, H, Q, d).

    ``seen`` (broadcastable to (B, H, Q, N), bool) is true at keys that may be seen. Alternatively ``causal``, with
    Q = N, lets every query see the keys up to its own. Torch's fused kernels are used, except for short sequences on a
    CPU, where their backward pass in bf16 takes several times as long as two plain products.
    """
    if q.device.type != "cpu" or k.shape[-2] > SHORT_SEQUENCE:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=seen, is_causal=causal)
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    if causal:
        seen = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).tril()
    if seen is not None:
        # Finite, so that a row that sees no key becomes an average and not NaN; the caller masks that row.
        scores = scores.masked_fill(~seen, torch.finfo(scores.dtype).min)
    return scores.softmax(-1) @ v


class KeyValueCache:
    """Keys and values (B, H, N, head_dim) of the N positions that one causal block has decoded so far.

    It also holds the ``rotation`` of all positions it has room for, and keys and values of the ``context``, if any.
    """

    def __init__(self, rotation: Rotation, context: "ProjectedContext | None" = None) -> None:
        self.rotation = rotation
        self.context = context
        self.keys: Tensor | None = None
        self.values: Tensor | None = None

    def __len__(self) -> int:
        return 0 if self.keys is None else self.keys.shape[-2]

    def upcoming(self, count: int) -> Rotation:
        """The rotation of the next ``count`` positions."""
        upcoming = slice(len(self), len(self) + count)
        return Rotation(self.rotation.cos[upcoming], self.rotation.sin[upcoming])

    def append(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Add keys and values (B, H, Q, head_dim); return all of them so far."""
        if self.keys is not None and self.values is not None:
            keys, values = torch.cat([self.keys, keys], -2), torch.cat([self.values, values], -2)
        self.keys, self.values = keys, values
        return keys, values

    def keep(self, rows: Tensor) -> None:
        """Drop the examples at which ``rows`` (B,) bool is false."""
        if self.keys is not None and self.values is not None:
            self.keys, self.values = self.keys[rows], self.values[rows]
        if self.context is not None:
            self.context = self.context.rows(rows)


class SelfAttention(nn.Module):
    """Attention of a sequence (B, N, W) to itself, causal or not."""

    def __init__(self, width: int, num_heads: int, *, causal: bool = False) -> None:
        super().__init__()
        self.head_dim = head_dim_of(width, num_heads)
        self.num_heads = num_heads
        self.causal = causal
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor, mask: Tensor | None = None, cache: KeyValueCache | None = None) -> Tensor:
        """``mask`` (B, N) bool, true at keys that may be seen; ``cache`` holds the earlier positions of ``x``."""
        qkv = rearrange(self.qkv(x), "b n (three h d) -> three b h n d", three=3, h=self.num_heads)
        start = 0 if cache is None else len(cache)
        if cache is None:
            rotation = rotary(torch.arange(x.shape[1], device=x.device), self.head_dim, qkv)
        else:
            rotation = cache.upcoming(x.shape[1])
        (q, k), v = rotation.rotate(qkv[:2]), qkv[2]
        if cache is not None:
            k, v = cache.append(k, v)
        seen = None if mask is None else mask[:, None, None, :]
        # A single new query against the cache sees every key, as causality allows.
        causal = self.causal and q.shape[-2] > 1
        if causal and (seen is not None or start):
            earlier = torch.ones(q.shape[-2], k.shape[-2], dtype=torch.bool, device=x.device).tril(start)
            seen, causal = earlier if seen is None else earlier & seen, False
        y = attend(q, k, v, seen, causal=causal)
        return self.out(rearrange(y, "b h n d -> b n (h d)"))

    def new_cache(self, room: int, context: "ProjectedContext | None" = None) -> KeyValueCache:
        """An empty cache for up to ``room`` positions, and a context for cross-attention."""
        weight = self.qkv.weight
        return KeyValueCache(rotary(torch.arange(room, device=weight.device), self.head_dim, weight), context)


class CrossAttention(nn.Module):
    """Attention of a sequence (B, Q, W) to a context (B, N, W), both placed on one axis by rotary positions."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.head_dim = head_dim_of(width, num_heads)
        self.num_heads = num_heads
        self.q = nn.Linear(width, width, bias=False)
        self.kv = nn.Linear(width, 2 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor, context: "Context | ProjectedContext", rotation: Rotation | None = None) -> Tensor:
        """``x`` (B, Q, W) to (B, Q, W); ``rotation`` of its positions, 0 to Q - 1 by default."""
        q = rearrange(self.q(x), "b n (h d) -> b h n d", h=self.num_heads)
        if rotation is None:
            rotation = rotary(torch.arange(x.shape[1], device=x.device), self.head_dim, q)
        seen = context if isinstance(context, ProjectedContext) else self.project(context)
        y = attend(rotation.rotate(q), seen.keys, seen.values, seen.mask[:, None, None, :])
        return self.out(rearrange(y, "b h n d -> b n (h d)"))

    def project(self, context: "Context") -> "ProjectedContext":
        """Keys and values of a context, which do not depend on the queries."""
        k, v = rearrange(self.kv(context.states), "b n (two h d) -> two b h n d", two=2, h=self.num_heads)
        return ProjectedContext(rotary(context.positions, self.head_dim, k).rotate(k), v, context.mask)


@dataclass(frozen=True)
class Context:
    """What a sequence attends to: ``states`` (B, N, W), ``mask`` (B, N) bool, ``positions`` (N,) on the token axis."""

    states: Tensor
    mask: Tensor
    positions: Tensor


@dataclass(frozen=True)
class ProjectedContext:
    """A context for one block: ``keys``, rotated, and ``values`` (B, H, N, head_dim), and ``mask`` (B, N)."""

    keys: Tensor
    values: Tensor
    mask: Tensor

    def contiguous(self) -> "ProjectedContext":
        """The same numbers in contiguous memory."""
        return ProjectedContext(self.keys.contiguous(), self.values.contiguous(), self.mask)

    def rows(self, rows: Tensor) -> "ProjectedContext":
        """The examples at which ``rows`` (B,) bool is true."""
        return ProjectedContext(self.keys[rows], self.values[rows], self.mask[rows])
