"""Derivatives of a network along a direction of its inputs, for objectives that need one. B batch."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from fewstep.shapes import expand_like

Function = Callable[..., Tensor]
"""Tensors with the batch first, (B, ...), to one tensor (B, ...); row b depends on rows b alone."""


class Derivative(Protocol):
    """d/dh f(x + h u) at h = 0, f of several tensors ``at`` = x with one direction of each, ``along`` = u."""

    passes: float
    """Forward passes that the derivative costs beside the one that gives the value."""

    def __call__(self, f: Function, at: Sequence[Tensor], along: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """``f(*at)`` and its derivative, both of the shape of ``f(*at)``, in float32 under autocast too.

        Gradients flow through both where the context records them: detach what is a target.
        """
        ...


class ForwardMode:
    """The exact derivative, by forward-mode differentiation (``torch.func.jvp``) next to the value.

    Fused attention kernels have no forward-mode rule, so attention runs on the plain one. Torch's layer norm has one
    that takes mean and deviation for constants: the derivative is right, its gradient is not (pytorch/pytorch#196700),
    so it is written out. The network is called itself, not the wrapper of a distributed run, whose hooks do not know
    forward mode.
    """

    passes = 1.0

    def __call__(self, f: Function, at: Sequence[Tensor], along: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """See :class:`Derivative`."""
        with torch.autocast(at[0].device.type, enabled=False), sdpa_kernel(SDPBackend.MATH), _WrittenOut():
            value, tangent = torch.func.jvp(f, tuple(at), tuple(along))[:2]
        return value, tangent


class _WrittenOut(TorchFunctionMode):
    """Layer norm in elementary operations, whose forward-mode rules can be differentiated again."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return (_layer_norm if func is F.layer_norm else func)(*args, **(kwargs or {}))


def _layer_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """``torch.nn.functional.layer_norm`` (arXiv:1607.06450), with its argument names."""
    axes = tuple(range(-len(normalized_shape), 0))
    centred = input - input.mean(axes, keepdim=True)
    normed = centred * (centred.square().mean(axes, keepdim=True) + eps).rsqrt()
    normed = normed if weight is None else normed * weight
    return normed if bias is None else normed + bias


class FiniteDifference:
    """(f(x + h u) - f(x - h u)) / 2h, of order 2 in ``step`` = h: for networks that forward mode cannot take.

    ``step`` is in units of time, since u moves time by 1. Raises ``ValueError`` unless it lies in (0, 0.1].
    """

    passes = 2.0

    def __init__(self, step: float = 5e-3) -> None:
        if not 0 < step <= 0.1:
            raise ValueError(f"step is {step}: expected a difference of times in (0, 0.1]")
        self.step = step

    def __call__(self, f: Function, at: Sequence[Tensor], along: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """See :class:`Derivative`."""

        def moved(h: float) -> Tensor:
            return f(*(x + h * u for x, u in zip(at, along, strict=True)))

        with torch.autocast(at[0].device.type, enabled=False):
            return f(*at), (moved(self.step) - moved(-self.step)) / (2 * self.step)


def total_derivative(
    derivative: Derivative, f: Function, x_t: Tensor, velocity: Tensor, t: Tensor, s: Tensor | None
) -> tuple[Tensor, Tensor]:
    """f and df/dt = f_x . ``velocity`` + f_t, the end ``s`` held, for ``f(x_t, t, s)`` (B, K, D); ``s`` may be None.

    This is the derivative in the definition of mean flow (arXiv:2505.13447, eq. 8) and of continuous-time consistency
    training (arXiv:2410.11081, eq. 5).
    """
    if s is None:
        return derivative(lambda x, time: f(x, time, None), (x_t, t), (velocity, torch.ones_like(t)))
    return derivative(f, (x_t, t, s), (velocity, torch.ones_like(t), torch.zeros_like(s)))


def scaled(weight: Tensor, x: Tensor) -> Tensor:
    """``x`` (B, ...) times one number an example, (B,)."""
    return expand_like(weight, x).to(x.dtype) * x
