"""Mixing of close neighbours. B batch, N positions, W width."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class LocalMixing(nn.Module):
    """Depthwise convolution over ``reach`` positions on either side, added to its input by the caller.

    Attention must first learn to find the neighbours before a denoiser can use them, which takes a short run most of
    its time; this gives them from the first step (as the Canon layers of "Physics of Language Models" 4.1 do for causal
    models). ``reach`` 0 leaves each position its own. Written as shifts, which on a CPU is faster than a grouped
    convolution.
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
        length = x.shape[1]
        padded = F.pad(x, (0, 0, self.reach, self.reach))
        weight = self.weight.to(x.dtype)
        mixed = padded[:, :length] * weight[0]
        for shift in range(1, 2 * self.reach + 1):
            mixed = mixed + padded[:, shift : shift + length] * weight[shift]
        return mixed
