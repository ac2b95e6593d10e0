"""The body of every denoiser: latent positions in, hidden states out, conditioned on time."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fewstep.nn.blocks import AdaptiveBlock, TimeEmbedding, initialise


class AdaptiveTransformer(nn.Module):
    """Stack of adaptive blocks over (B, K, W), conditioned on one time ``t`` or on two, ``t`` and ``s``.

    With ``two_times`` the second time enters as the distance ``s - t`` (as in mean flow, arXiv:2505.13447, section 4);
    without it, passing ``s`` raises ``ValueError``. Times enter as sines and cosines of 1 to ``max_frequency`` radians
    per unit of time. The usual 1000 separates times a thousandth apart, and makes the derivative in time as large and
    as rough: objectives that train on that derivative need a low one (measured in docs/objectives.md; for the same
    reason arXiv:2410.11081, section 4.1, gives up fast Fourier features).
    """

    def __init__(
        self,
        width: int,
        depth: int,
        num_heads: int,
        *,
        two_times: bool = False,
        local_reach: int = 2,
        max_frequency: float = 1_000.0,
    ) -> None:
        super().__init__()
        if not 1 <= max_frequency < math.inf:
            raise ValueError(f"max_frequency is {max_frequency}: expected a finite number of at least 1 (radians)")
        self.time = TimeEmbedding(width, max_frequency=max_frequency)
        self.distance = TimeEmbedding(width, max_frequency=max_frequency) if two_times else None
        blocks = [AdaptiveBlock(width, num_heads, local_reach=local_reach) for _ in range(depth)]
        self.blocks = nn.ModuleList(blocks)
        self.norm = nn.LayerNorm(width)
        initialise(self)
        for block in blocks:
            nn.init.zeros_(block.modulation.weight)

    def ignore_second_time(self) -> None:
        """Make the output independent of where a jump ends, until training changes it."""
        if self.distance is None:
            raise ValueError("this network has one time only: there is no second time to ignore")
        last = self.distance.mlp[-1]
        assert isinstance(last, nn.Linear)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)

    def forward(self, h: Tensor, t: Tensor, s: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """``h`` (B, K, W), times (B,), ``mask`` (B, K) bool. Returns (B, K, W), normed."""
        condition = self.time(t)
        if self.distance is not None:
            condition = condition + self.distance(torch.zeros_like(t) if s is None else s - t)
        elif s is not None:
            raise ValueError("this denoiser has one time only: build it with two_times=True to pass s")
        condition = F.silu(condition).to(h.dtype)
        for block in self.blocks:
            h = block(h, condition, mask)
        return self.norm(h)
