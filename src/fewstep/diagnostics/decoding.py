"""Decoders as callables: derivatives, directions in latent space, and a few examples at a time.

Legend: B examples, L tokens, n numbers in one latent. All functions work in every gradient mode and leave no gradient
on parameters.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from fewstep.shapes import expand_like, randn

Decode = Callable[[Tensor], Tensor]
"""A differentiable map, such as latents (B, ...) to logits (B, L, V); row b depends on row b alone.

It must not switch gradients off or detach its input (its derivatives would be 0), and tensors that it holds, such as a
mask, must not come from inference mode (clone them under ``torch.inference_mode(False)``).
"""


def directional(f: Decode, x: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    """``f(x)`` and J u, J the Jacobian of ``f`` at ``x`` and ``u`` shaped like ``x``: one forward-mode pass.

    Costs about two evaluations of f. Runs on the plain attention kernel, since fused ones have no forward mode.
    """
    with torch.inference_mode(False), torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        value, tangent = torch.func.jvp(f, (_plain(x),), (_plain(u).to(x.dtype),))[:2]
    return value.detach(), tangent.detach()


def pullback(f: Decode, x: Tensor, w: Tensor) -> Tensor:
    """J' w, shaped like ``x``, with ``w`` shaped like ``f(x)``: one evaluation and one backward pass."""
    with torch.inference_mode(False), torch.enable_grad():
        x = _plain(x).requires_grad_()
        value = f(x)
        return _gradient(value, x, _plain(w).to(value.dtype))


def value_and_gradient(f: Decode, x: Tensor) -> tuple[Tensor, Tensor]:
    """A scalar for each example, ``f(x)`` (B,), and its gradient, shaped like ``x`` (B, ...): one backward pass."""
    with torch.inference_mode(False), torch.enable_grad():
        x = _plain(x).requires_grad_()
        value = f(x)
        return value.detach(), _gradient(value, x, torch.ones_like(value))


def rms(z: Tensor) -> float:
    """Root mean square of all numbers in ``z``: the unit of displacements."""
    return float(z.double().square().mean().sqrt())


def numbers_per_latent(z: Tensor) -> int:
    """n for latents ``z`` (B, ...)."""
    return math.prod(z.shape[1:])


def norms(x: Tensor) -> Tensor:
    """Euclidean norm of each row of ``x`` (B, ...): (B,) float64."""
    return x.double().flatten(1).square().sum(1).sqrt()


def unit_rows(x: Tensor) -> Tensor:
    """``x`` (B, ...) with each row divided by its norm; a row that is zero or not finite becomes zeros."""
    length = norms(x)
    usable = (length > 0) & length.isfinite()
    scaled = x.double() / expand_like(length.where(usable, 1.0), x)
    return torch.where(expand_like(usable, x), scaled, 0.0).to(x.dtype)


def random_directions(like: Tensor, generator: torch.Generator) -> Tensor:
    """Unit vectors uniform on the sphere of R^n, a row each, with the shape and dtype of ``like`` (B, ...)."""
    return unit_rows(randn(tuple(like.shape), like, generator).to(like.dtype))


class DecodeInParts:
    """A :data:`Decode` for at most ``examples_at_once`` examples at a time, so that the logits of all need not fit.

    With 50,000 tokens the logits of 64 examples of 32 positions take 0.4 GB in float32, and a diagnostic holds several.
    ``decode(z, *context)`` gets the rows of ``context``, each (B, ...), that belong to its examples. Functions of this
    package go through :func:`in_parts` and hold the output of one part only.
    """

    def __init__(self, decode: Callable[..., Tensor], examples_at_once: int, context: Sequence[Tensor] = ()) -> None:
        if examples_at_once < 1:
            raise ValueError(f"examples_at_once is {examples_at_once}: expected at least 1.")
        self.decode = decode
        self.examples_at_once = examples_at_once
        self.context = tuple(context)

    def __call__(self, z: Tensor) -> Tensor:
        """Outputs (B, ...) of all of ``z`` (B, ...), joined."""
        return torch.cat([decode(z[rows]) for decode, rows in self.parts(len(z))])

    def parts(self, count: int) -> Iterator[tuple[Decode, slice]]:
        """A decoder for each part of ``count`` examples, with its rows."""
        for start in range(0, count, self.examples_at_once):
            rows = slice(start, min(start + self.examples_at_once, count))
            yield self._part(tuple(value[rows] for value in self.context)), rows

    def _part(self, context: tuple[Tensor, ...]) -> Decode:
        return lambda z: self.decode(z, *context)


def in_parts(decode: Decode, function: Callable[..., Any], *rows: Tensor | None) -> Any:
    """``function(decode, *rows)``, part by part where ``decode`` is a :class:`DecodeInParts`.

    ``rows`` are (B, ...) or None; ``function`` returns a tensor (B, ...) or a tuple of them, each row of which depends
    on that example alone. The joined results are those of all examples at once, up to the last bit.
    """
    if not isinstance(decode, DecodeInParts):
        return function(decode, *rows)
    count = next(len(value) for value in rows if value is not None)
    outputs = [
        function(part, *(None if value is None else value[places] for value in rows))
        for part, places in decode.parts(count)
    ]
    if isinstance(outputs[0], Tensor):
        return torch.cat(outputs)
    return tuple(torch.cat(column) for column in zip(*outputs, strict=True))


def read_tokens(decode: Decode, z: Tensor) -> Tensor:
    """Argmax tokens (B, L) int64 of latents ``z`` (B, ...)."""
    return in_parts(decode, lambda part, rows: part(rows).argmax(-1), z)


def draw_positions(num_examples: int, num_tokens: int, num_positions: int, generator: torch.Generator) -> Tensor:
    """Token positions (B, P) int64, uniform and without replacement within an example."""
    if not 1 <= num_positions <= num_tokens:
        raise ValueError(f"{num_positions} positions of {num_tokens} tokens: expected a number from 1 to {num_tokens}.")
    order = torch.rand(num_examples, num_tokens, generator=generator, device=generator.device).cpu()
    return order.argsort(1)[:, :num_positions]


def require_positions(z: Tensor, positions: Tensor) -> None:
    """Raise ValueError unless ``positions`` is (B, P) whole numbers for ``z`` (B, ...), B and P at least 1."""
    if positions.ndim != 2 or len(positions) != len(z) or positions.numel() == 0 or positions.is_floating_point():
        raise ValueError(
            f"positions have shape {tuple(positions.shape)} and type {positions.dtype} for {len(z)} latents: "
            "expected (B, P) int64 with a row for each latent, draw them with draw_positions."
        )


def _plain(x: Tensor) -> Tensor:
    """A copy that autograd can work on: not an inference tensor, no history of its own."""
    return x.detach().clone()


def _gradient(value: Tensor, x: Tensor, w: Tensor) -> Tensor:
    if not value.requires_grad:  # a constant: nothing leads back to x
        return torch.zeros_like(x)
    (gradient,) = torch.autograd.grad(value, x, w, allow_unused=True)
    return torch.zeros_like(x) if gradient is None else gradient.detach()
