"""Tensor helpers. B batch, L tokens, K latent positions, D latent dimension."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

Generators = torch.Generator | Sequence[torch.Generator]
"""One generator for a whole batch, or one per example."""


def check_sizes(owner: str, sizes: Mapping[str, int | None], *, least: int = 1) -> None:
    """Raise ``ValueError`` for the first of ``sizes``, arguments of ``owner``, that is not a whole number >= ``least``.

    None stands for a part that is left out, and passes.
    """
    for name, size in sizes.items():
        if size is not None and (type(size) is not int or size < least):
            raise ValueError(f"{owner}: {name} is {size!r}, expected a whole number of at least {least}")


def expand_like(t: Tensor, x: Tensor) -> Tensor:
    """Append singleton axes to ``t`` (B,) until it broadcasts against ``x`` (B, ...)."""
    return t.reshape(t.shape + (1,) * (x.ndim - t.ndim))


def masked_mean(values: Tensor, mask: Tensor | None) -> Tensor:
    """Mean of ``values`` (B, K, ...) over all axes but the first, where ``mask`` (B, K) is true. Returns (B,).

    A row without any true position gives 0, never NaN.
    """
    per_position = values.flatten(2).mean(-1) if values.ndim > 2 else values
    if mask is None:
        return per_position.mean(-1)
    weight = mask.to(per_position.dtype)
    return (per_position * weight).sum(-1) / weight.sum(-1).clamp(min=1)


def randn(shape: tuple[int, ...], like: Tensor, generator: Generators) -> Tensor:
    """Standard normal noise in float32, drawn on the generator's device and moved to that of ``like``.

    A CPU generator gives the same numbers for every device. With a sequence of B generators, ``shape`` (B, ...) is
    filled example by example, each from its own: an example's noise then does not depend on its batch.
    """
    return _draw(torch.randn, shape, like, generator)


def rand(shape: tuple[int, ...], like: Tensor, generator: Generators) -> Tensor:
    """Uniform numbers on [0, 1) in float32, drawn like :func:`randn`."""
    return _draw(torch.rand, shape, like, generator)


def _draw(draw: Callable[..., Tensor], shape: tuple[int, ...], like: Tensor, generator: Generators) -> Tensor:
    if isinstance(generator, torch.Generator):
        return draw(shape, generator=generator, device=generator.device).to(like.device)
    if len(generator) != shape[0]:
        raise ValueError(
            f"{len(generator)} generators for a batch of {shape[0]}: pass one generator, or one per example"
        )
    return torch.stack([draw(shape[1:], generator=g, device=g.device) for g in generator]).to(like.device)


def example_generators(seed: int, start: int, count: int) -> list[torch.Generator]:
    """CPU generators of the examples ``start`` .. ``start + count - 1`` of the stream of ``seed``.

    Example i gets the same generator in every batch, so a seed gives the same samples at any batch size. PyTorch's CPU
    generator keeps only the low 32 bits of a seed, so ``seed`` is scattered over them first (splitmix64, Steele et al.
    2014) and the index added: no two of the 2**32 examples of a seed share a generator, and neighbouring seeds start
    far apart.
    """
    if start < 0 or count < 0:
        raise ValueError(f"start is {start} and count {count}: expected numbers >= 0")
    z = (seed + 0x9E3779B97F4A7C15) % 2**64
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
    base = z ^ (z >> 31)
    return [torch.Generator().manual_seed((base + index) % 2**32) for index in range(start, start + count)]
