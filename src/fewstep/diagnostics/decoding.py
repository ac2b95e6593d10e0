"""Decoders as callables: derivatives, directions in latent space, and a few examples at a time.

Legend: B examples, L tokens, P positions, n numbers in one latent. All functions work in every gradient mode and leave
no gradient on parameters.
"""

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


def pullback(f: Decode, x: Tensor, w: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """``f(x)`` and J' w, ``w`` shaped like ``f(x)``: one evaluation and one backward pass.

    Without ``w`` the gradient of each number f(x), for a function with one number per example.
    """
    with torch.inference_mode(False), torch.enable_grad():
        x = _plain(x).requires_grad_()
        value = f(x)
        if not value.requires_grad:  # a constant: nothing leads back to x
            return value, torch.zeros_like(x)
        w = torch.ones_like(value) if w is None else _plain(w).to(value.dtype)
        (gradient,) = torch.autograd.grad(value, x, w, materialize_grads=True)
        return value.detach(), gradient.detach()


def rms(z: Tensor) -> float:
    """Root mean square of all numbers in ``z``: the unit of displacements."""
    return float(z.double().square().mean().sqrt())


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
        self.decode = decode
        self.examples_at_once = examples_at_once
        self.context = tuple(context)

    def __call__(self, z: Tensor) -> Tensor:
        """Outputs (B, ...) of all of ``z`` (B, ...), joined."""
        joined: Tensor = in_parts(self, lambda part, rows: part(rows), z)
        return joined

    def parts(self, count: int) -> Iterator[tuple[Decode, slice]]:
        """A decoder for each part of ``count`` examples, with its rows."""
        for start in range(0, count, self.examples_at_once):
            rows = slice(start, start + self.examples_at_once)
            yield self._part([value[rows] for value in self.context]), rows

    def _part(self, context: Sequence[Tensor]) -> Decode:
        return lambda z: self.decode(z, *context)


def in_parts(decode: Decode, function: Callable[..., Any], z: Tensor, *rows: Tensor | None) -> Any:
    """``function(decode, z, *rows)``, part by part where ``decode`` is a :class:`DecodeInParts`.

    ``z`` and ``rows`` are (B, ...) or None; ``function`` returns a tensor (B, ...) or a tuple of them, each row of
    which depends on that example alone. The joined results are those of all examples at once, up to the last bit.
    """
    if not isinstance(decode, DecodeInParts):
        return function(decode, z, *rows)
    outputs = [
        function(part, z[places], *(None if value is None else value[places] for value in rows))
        for part, places in decode.parts(len(z))
    ]
    if isinstance(outputs[0], Tensor):
        return torch.cat(outputs)
    return tuple(torch.cat(column) for column in zip(*outputs, strict=True))


def read_tokens(decode: Decode, z: Tensor, positions: Tensor | None = None) -> Tensor:
    """Argmax tokens int64 of latents ``z`` (B, ...): all (B, L), or those at ``positions`` (B, P)."""
    ids: Tensor = in_parts(decode, lambda part, rows: part(rows).argmax(-1), z)
    return ids if positions is None else ids.gather(1, positions)


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
