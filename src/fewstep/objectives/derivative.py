"""Forward-mode derivatives of a network, for objectives that train on one. B batch, K positions, D dimension."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from fewstep.denoisers import FlowModel


def forward_derivative(
    f: Callable[..., Tensor], at: Sequence[Tensor], along: Sequence[Tensor]
) -> tuple[Tensor, Tensor]:
    """``f(*at)`` and d/dh f(at + h ``along``) at h = 0, in float32 under autocast too; gradients flow through both.

    Fused attention kernels have no forward-mode rule, so attention runs unfused. Torch's forward-mode rule for layer
    norm treats mean and deviation as constants of the backward pass: the derivative is right, the gradient through it
    is not (pytorch/pytorch#196700), so layer norm is written out.
    """
    with torch.autocast(at[0].device.type, enabled=False), sdpa_kernel(SDPBackend.MATH), _ElementaryLayerNorm():
        value, tangent = torch.func.jvp(f, tuple(at), tuple(along))[:2]
    return value, tangent


def estimate_and_change(
    model: FlowModel, x_t: Tensor, velocity: Tensor, t: Tensor, s: Tensor | None, mask: Tensor
) -> tuple[Tensor, Tensor]:
    """The clean estimate F(x_t, t, s), and dF/dt = F_x . ``velocity`` + F_t at fixed ``s`` without gradient, (B, K, D).

    The derivative in the definitions of mean flow (arXiv:2505.13447, eq. 8) and of continuous-time consistency models
    (arXiv:2410.11081, eq. 5).
    """
    value, change = forward_derivative(
        lambda x, time: model.denoise(x, time, s=s, mask=mask), (x_t, t), (velocity, torch.ones_like(t))
    )
    return value, change.detach()


class _ElementaryLayerNorm(TorchFunctionMode):
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
