"""Tensor helpers. B batch, L tokens, K latent positions, D latent dimension."""

import hashlib
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor

Generators = torch.Generator | Sequence[torch.Generator]
"""One generator for a whole batch, or one per example."""


def check_sizes(owner: str, sizes: Mapping[str, int | None], *, least: int = 1) -> None:
    """Raise ``ValueError`` for the first of ``sizes``, arguments of ``owner``, that is not a whole number >= ``least``.

    None stands for a part that is left out, and passes.
    """
    for name, size in sizes.items():
        is_whole = hasattr(size, "__index__") and not isinstance(size, bool)  # NumPy's whole numbers too
        if size is not None and (not is_whole or size < least):
            raise ValueError(f"{owner}: {name} is {size!r}, expected a whole number of at least {least}")


@contextmanager
def own_defaults() -> Iterator[None]:
    """Load, train and sample by torch's own defaults (float32, CPU, gradients), whatever the process has set."""
    dtype, device = torch.get_default_dtype(), torch.get_default_device()
    torch.set_default_dtype(torch.float32)
    try:
        # Where nothing is set there is no device context, which would slow down every call of torch.
        on_cpu = nullcontext() if device.type == "cpu" else torch.device("cpu")
        with on_cpu, torch.inference_mode(False), torch.enable_grad():
            yield
    finally:
        torch.set_default_dtype(dtype)


def plain(value: Any) -> Any:
    """``value`` with NumPy's numbers, at any depth of dicts, lists and tuples, as Python's."""
    if isinstance(value, Mapping):
        return {name: plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(plain(item) for item in value)
    return value.item() if type(value).__module__ == "numpy" and hasattr(value, "item") else value


def tensors_digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256, as hexadecimal digits, of the names, dtypes, shapes and bytes of tensors on any device."""
    digest = hashlib.sha256()
    for name, value in sorted(tensors.items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)};".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


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

    A CPU generator gives the same numbers for every device. With a sequence of B generators, each fills one example of
    ``shape`` (B, ...): its noise then does not depend on its batch.
    """
    return _draw(torch.randn, shape, like, generator)


def real_positions(z: Tensor) -> Tensor:
    """Which latents (B, K) of ``z`` (B, K, D) stand for text: padding is zero, and no text is padding alone."""
    real = (z != 0).any(-1)
    return real | ~real.any(-1, keepdim=True)


def latent_mask(tokens: Tensor, num_latents: int) -> Tensor:
    """Which latents (B, K) stand for at least one of ``tokens``, a mask (B, L)."""
    return tokens.unflatten(1, (num_latents, -1)).any(-1)


def token_mask(latents: Tensor, length: int) -> Tensor:
    """The tokens (B, L) that ``latents``, a mask (B, K), stand for."""
    return latents.repeat_interleave(length // latents.shape[1], dim=1)


def rand(shape: tuple[int, ...], like: Tensor, generator: Generators) -> Tensor:
    """Uniform numbers on [0, 1) in float32, drawn like :func:`randn`."""
    return _draw(torch.rand, shape, like, generator)


def _draw(draw: Callable[..., Tensor], shape: tuple[int, ...], like: Tensor, generator: Generators) -> Tensor:
    if isinstance(generator, torch.Generator):
        return draw(shape, generator=generator, device=generator.device, dtype=torch.float32).to(like.device)
    if len(generator) != shape[0]:
        raise ValueError(
            f"{len(generator)} generators for a batch of {shape[0]}: pass one generator, or one per example"
        )
    draws = [draw(shape[1:], generator=g, device=g.device, dtype=torch.float32) for g in generator]
    return torch.stack(draws).to(like.device)


def example_generators(seed: int, start: int, count: int) -> list[torch.Generator]:
    """CPU generators of the examples ``start`` .. ``start + count - 1`` of the stream of ``seed``.

    A seed gives the same samples at any batch size. PyTorch's CPU generator keeps only the low 32 bits of a seed, so
    ``seed`` is scattered over them first (splitmix64, Steele et al. 2014) and the index added: no two of the 2**32
    examples of a seed share a generator, and neighbouring seeds start far apart.
    """
    seed, start, count = operator.index(seed), operator.index(start), operator.index(count)
    if start < 0 or count < 0:
        raise ValueError(f"start is {start} and count {count}: expected numbers >= 0")
    z = (seed + 0x9E3779B97F4A7C15) % 2**64
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
    base = z ^ (z >> 31)
    return [torch.Generator(device="cpu").manual_seed((base + index) % 2**32) for index in range(start, start + count)]
