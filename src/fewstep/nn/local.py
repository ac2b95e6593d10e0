"""Mixing of close neighbours. B batch, N positions, W width."""

from typing import Any

import torch
from torch import Tensor, nn


class _Mixing(torch.autograd.Function):
    """y_n = sum_s w_s x_(n + s - reach), for x (B, N, W), w (2 reach + 1, W), zero beyond the ends.

    Its derivatives are itself, so it can be differentiated again, in both modes. ``F.conv2d(groups=W)`` makes a
    training step 0.95 to 1.04 times as long on a CPU, but rounds differently in bf16, so that seeded runs would change.
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

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, int | None], x: Tensor, weight: Tensor) -> tuple[Tensor, int]:
        x_dim, weight_dim = in_dims
        if weight_dim is None and x_dim is not None:  # further examples
            x = x.movedim(x_dim, 0)
            return _Mixing.apply(x.flatten(0, 1), weight).unflatten(0, x.shape[:2]), 0
        xs = [x] * info.batch_size if x_dim is None else x.unbind(x_dim)
        weights = [weight] * info.batch_size if weight_dim is None else weight.unbind(weight_dim)
        return torch.stack([_Mixing.apply(row, w) for row, w in zip(xs, weights, strict=True)]), 0


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
    With ``reach`` 0 positions do not mix.
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
