"""Jacobian products of a callable, whatever the caller's gradient mode, and without a trace on any parameter.

A fused attention kernel has no forward-mode rule, so the forward product runs on the plain one.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

Decode = Callable[[Tensor], Tensor]
"""A differentiable map of tensors, such as latents (B, ...) to logits (B, L, V); row b depends on row b alone.

It must not switch gradients off inside, nor detach its input: the products would be 0. Tensors that it holds besides
its input (a mask) must not come from inference mode; a clone made under ``torch.inference_mode(False)`` will do.
"""


def directional(f: Decode, x: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    """``f(x)`` and J u, J the Jacobian of ``f`` at ``x`` and ``u`` shaped like ``x``: one forward-mode pass.

    Both results have the shape of ``f(x)`` and are detached. Where f does not depend on x, J u is 0. Costs about two
    evaluations of f. Raises ValueError where ``u`` has another shape than ``x``.
    """
    _require_same_shape(x, u, "u", "x")
    with torch.inference_mode(False), torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        value, tangent = torch.func.jvp(f, (_plain(x),), (_plain(u).to(x.dtype),))[:2]
    return value.detach(), tangent.detach()


def pullback(f: Decode, x: Tensor, w: Tensor) -> Tensor:
    """J' w, J the Jacobian of ``f`` at ``x`` and ``w`` shaped like ``f(x)``: one evaluation and one backward pass.

    The result has the shape of ``x`` and is detached. Raises ValueError where ``w`` has another shape than ``f(x)``.
    """
    with torch.inference_mode(False), torch.enable_grad():
        x = _plain(x).requires_grad_()
        value = f(x)
        _require_same_shape(value, w, "w", "f(x)")
        return _gradient(value, x, _plain(w).to(value.dtype))


def value_and_gradient(f: Decode, x: Tensor) -> tuple[Tensor, Tensor]:
    """A scalar an example, ``f(x)`` (B,), and its gradient with respect to that example, shaped like ``x`` (B, ...).

    Row b of ``f(x)`` may depend on row b of ``x`` only: then one backward pass serves all rows. Both are detached.
    """
    with torch.inference_mode(False), torch.enable_grad():
        x = _plain(x).requires_grad_()
        value = f(x)
        return value.detach(), _gradient(value, x, torch.ones_like(value))


def _plain(x: Tensor) -> Tensor:
    """A copy that autograd can work on: not an inference tensor, no history of its own."""
    return x.detach().clone()


def _gradient(value: Tensor, x: Tensor, w: Tensor) -> Tensor:
    if not value.requires_grad:  # a constant: nothing leads back to x
        return torch.zeros_like(x)
    (gradient,) = torch.autograd.grad(value, x, w, allow_unused=True)
    return torch.zeros_like(x) if gradient is None else gradient.detach()


def _require_same_shape(x: Tensor, u: Tensor, name: str, other: str) -> None:
    if x.shape != u.shape:
        raise ValueError(
            f"{name} has shape {tuple(u.shape)} and {other} {tuple(x.shape)}: expected equal shapes, pass one like it."
        )
