"""Latents to zero mean and unit variance by stored statistics. B batch, K positions, D latent dimension."""

import torch
from torch import Tensor, nn

from fewstep.schedules import upcast


class Whitening(nn.Module):
    """Per-dimension standardisation with running statistics that ignore padding.

    In training mode the batch's own mean and variance are used and the stored ones follow with ``momentum``; in
    evaluation mode the stored ones are used: a fixed affine map.
    """

    mean: Tensor
    variance: Tensor

    def __init__(self, latent_dim: int, momentum: float = 0.02) -> None:
        super().__init__()
        self.momentum = momentum
        self.register_buffer("mean", torch.zeros(latent_dim))
        self.register_buffer("variance", torch.ones(latent_dim))

    def forward(self, z: Tensor, mask: Tensor) -> Tensor:
        """``z`` (B, K, D), ``mask`` (B, K) bool. Returns (B, K, D) in at least float32, zero at padding."""
        z = upcast(z)
        mean, variance = self.mean, self.variance
        if self.training:
            mean, variance = self.statistics(z, mask)
            self._follow(mean.detach(), variance.detach())
        return (z - mean) * (variance + 1e-6).rsqrt() * mask[..., None]

    @staticmethod
    def statistics(z: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance (D,) of ``z`` (B, K, D) over the positions where ``mask`` (B, K) is true."""
        weight = mask[..., None].to(z.dtype)
        count = weight.sum().clamp(min=1)
        mean = (z * weight).sum((0, 1)) / count
        return mean, ((z - mean).square() * weight).sum((0, 1)) / count

    @torch.no_grad()
    def _follow(self, mean: Tensor, variance: Tensor) -> None:
        # A step that is not finite is skipped, but its statistics would stay in the stored ones for good.
        for stored, new in ((self.mean, mean), (self.variance, variance)):
            stored.lerp_(torch.where(torch.isfinite(new), new, stored), self.momentum)

    @torch.no_grad()
    def fit(self, z: Tensor, mask: Tensor) -> None:
        """Store the exact statistics of raw latents ``z`` (B, K, D)."""
        mean, variance = self.statistics(upcast(z), mask)
        self.mean.copy_(mean)
        self.variance.copy_(variance)
