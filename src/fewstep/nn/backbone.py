"""The body that every denoiser shares: latent positions in, hidden states out, steered by time."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fewstep.nn.blocks import AdaptiveBlock, TimeEmbedding, initialise


class AdaptiveTransformer(nn.Module):
    """Stack of adaptive blocks over (B, K, W), conditioned on one time ``t`` or on two, ``t`` and ``s``.

    With ``two_times`` the second time enters as the distance ``s - t`` (as in mean flow, arXiv:2505.13447, section 4);
    without it, passing ``s`` raises ``ValueError``.
    """

    def __init__(
        self, width: int, depth: int, num_heads: int, *, two_times: bool = False, local_reach: int = 2
    ) -> None:
        super().__init__()
        self.time = TimeEmbedding(width)
        self.distance = TimeEmbedding(width) if two_times else None
        blocks = [AdaptiveBlock(width, num_heads, local_reach=local_reach) for _ in range(depth)]
        self.blocks = nn.ModuleList(blocks)
        self.norm = nn.LayerNorm(width)
        initialise(self)
        for block in blocks:
            nn.init.zeros_(block.modulation.weight)

    def forward(self, h: Tensor, t: Tensor, s: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """``h`` (B, K, W), times (B,), ``mask`` (B, K) bool. Returns (B, K, W), normed."""
        condition = self.time(t)
        if self.distance is not None:
            condition = condition + self.distance(torch.zeros_like(t) if s is None else s - t)
        elif s is not None:
            raise ValueError("this denoiser knows one time only: build it with two_times=True to pass s")
        condition = F.silu(condition).to(h.dtype)
        for block in self.blocks:
            h = block(h, condition, mask)
        return self.norm(h)
