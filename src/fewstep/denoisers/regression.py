"""The plain denoiser: a transformer that regresses its target. B batch, K positions, D latent dimension, W width."""

from typing import Any

import torch
from torch import Tensor, nn

from fewstep.denoisers.output import DenoiserOutput
from fewstep.nn import AdaptiveTransformer
from fewstep.schedules import upcast
from fewstep.shapes import check_sizes


class RegressionDenoiser(nn.Module):
    """Diffusion transformer over latents (B, K, D), after arXiv:2212.09748; its output starts at zero.

    ``num_positions`` fixes the longest K, ``latent_dim`` is D. With ``self_conditioning`` it also reads its previous
    estimate of x_1 (arXiv:2208.04202). ``max_frequency``, in radians per unit of time, bounds how fast the output may
    change with time: low for objectives that take a derivative in time (:class:`~fewstep.nn.AdaptiveTransformer`).
    """

    def __init__(
        self,
        latent_dim: int,
        num_positions: int,
        *,
        width: int = 192,
        depth: int = 6,
        num_heads: int = 6,
        self_conditioning: bool = False,
        two_times: bool = False,
        local_reach: int = 2,
        max_frequency: float = 1_000.0,
    ) -> None:
        super().__init__()
        sizes = {"latent_dim": latent_dim, "num_positions": num_positions, "width": width, "num_heads": num_heads}
        check_sizes(type(self).__name__, sizes)
        check_sizes(type(self).__name__, {"depth": depth, "local_reach": local_reach}, least=0)
        options = {"two_times": two_times, "local_reach": local_reach, "max_frequency": max_frequency}
        self.config: dict[str, Any] = {**sizes, "depth": depth, "self_conditioning": self_conditioning, **options}
        self.self_conditioning = self_conditioning
        self.inputs = nn.Linear(latent_dim * (2 if self_conditioning else 1), width)
        self.positions = nn.Parameter(torch.zeros(num_positions, width))
        self.body = AdaptiveTransformer(
            width, depth, num_heads, two_times=two_times, local_reach=local_reach, max_frequency=max_frequency
        )
        self.outputs = zero_linear(width, latent_dim)

    def embed(self, x_t: Tensor, self_cond: Tensor | None) -> Tensor:
        """``x_t`` and ``self_cond`` (B, K, D) to (B, K, W). ``ValueError`` for more positions than it was built for."""
        if x_t.shape[1] > len(self.positions):
            raise ValueError(f"{x_t.shape[1]} latent positions, but this denoiser was built for {len(self.positions)}")
        h = x_t
        if self.self_conditioning:
            h = torch.cat([x_t, torch.zeros_like(x_t) if self_cond is None else self_cond], dim=-1)
        return self.inputs(h) + self.positions[: x_t.shape[1]]

    def forward(
        self,
        x_t: Tensor,
        t: Tensor,
        s: Tensor | None = None,
        *,
        mask: Tensor | None = None,
        self_cond: Tensor | None = None,
    ) -> DenoiserOutput:
        """``x_t`` (B, K, D), times (B,), ``mask`` (B, K), ``self_cond`` (B, K, D)."""
        return DenoiserOutput(upcast(self.outputs(self.body(self.embed(x_t, self_cond), t, s, mask))))


def zero_linear(inputs: int, outputs: int) -> nn.Linear:
    """A linear map that starts at zero."""
    layer = nn.Linear(inputs, outputs)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer
