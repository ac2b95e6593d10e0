"""Tokens to whitened latents. B batch, L tokens, K = L / stride positions, D latent dimension, W width."""

import torch
from einops import rearrange, reduce
from torch import Tensor, nn

from fewstep.errors import UserError
from fewstep.nn import Block, initialise
from fewstep.schedules import upcast
from fewstep.shapes import check_sizes
from fewstep.types import Latents


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


class TransformerAutoencoder(nn.Module):
    """Encoder of L tokens to L / stride whitened latents of D dimensions: a :class:`~fewstep.types.LatentEncoder`.

    With ``depth`` 0 and ``stride`` 1 no token sees another: the latents are then a code of the vocabulary.
    """

    def __init__(
        self, vocab_size: int, latent_dim: int, *, stride: int = 1, width: int = 128, depth: int = 2, num_heads: int = 4
    ) -> None:
        super().__init__()
        sizes = {"vocab_size": vocab_size, "latent_dim": latent_dim, "stride": stride}
        check_sizes("TransformerAutoencoder", {**sizes, "width": width, "num_heads": num_heads})
        check_sizes("TransformerAutoencoder", {"depth": depth}, least=0)
        self.config = {**sizes, "width": width, "depth": depth, "num_heads": num_heads}
        self.latent_dim = latent_dim
        self.vocab_size = vocab_size
        self.stride = stride
        self.embedding = nn.Embedding(vocab_size, width)
        self.mask_embedding = nn.Parameter(torch.zeros(width))
        self.blocks = nn.ModuleList(Block(width, num_heads, local_reach=2) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.to_latent = nn.Linear(stride * width, latent_dim)
        initialise(self)
        # Latents of unit scale from the first step on: the norm's output has unit variance.
        nn.init.normal_(self.to_latent.weight, std=(stride * width) ** -0.5)
        self.whitening = Whitening(latent_dim)

    def num_latents(self, num_tokens: int) -> int:
        """K for L tokens; ``UserError`` unless the stride divides L."""
        if num_tokens % self.stride:
            raise UserError(
                f"a block of {num_tokens} tokens is not divisible by stride {self.stride}: "
                f"choose a block_size that is a multiple of {self.stride}"
            )
        return num_tokens // self.stride

    def encode(self, ids: Tensor, mask: Tensor, hidden: Tensor | None = None) -> Latents:
        """Token ``ids`` and ``mask`` (B, L) to latents ``z`` (B, K, D); ``hidden`` (B, L) tokens are not seen."""
        raw, latent_mask = self.encode_raw(ids, mask, hidden)
        return Latents(self.whitening(raw, latent_mask), latent_mask)

    def encode_raw(self, ids: Tensor, mask: Tensor, hidden: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Latents before whitening (B, K, D), and their mask (B, K)."""
        features, latent_mask = self.features(ids, mask, hidden)
        return self.to_latent(features), latent_mask

    def features(self, ids: Tensor, mask: Tensor, hidden: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """What latents are linear in: normed states (B, K, stride W), and the mask (B, K) of the latents."""
        self.num_latents(ids.shape[1])
        seen = mask.bool()
        h = self.embedding(ids)
        if hidden is not None:
            h = torch.where(hidden[..., None], self.mask_embedding, h)
        for block in self.blocks:
            h = block(h, seen)
        h = self.norm(h) * seen[..., None]
        latent_mask = reduce(seen.to(torch.uint8), "b (k s) -> b k", "max", s=self.stride).bool()
        return rearrange(h, "b (k s) w -> b k (s w)", s=self.stride), latent_mask

    @torch.no_grad()
    def codebook(self) -> Tensor:
        """The latent of every token, (V, D) float32; ``UserError`` if a latent depends on several tokens."""
        if len(self.blocks) or self.stride != 1:
            raise UserError(
                f"an autoencoder of depth {len(self.blocks)} and stride {self.stride} has no codebook: "
                "its latents depend on several tokens; use depth 0 and stride 1, or a RegressionDenoiser"
            )
        ids = torch.arange(self.vocab_size, device=self.embedding.weight.device)[:, None]
        raw, mask = self.encode_raw(ids, torch.ones_like(ids))
        scale = (self.whitening.variance + 1e-6).rsqrt()
        return ((raw[:, 0].float() - self.whitening.mean) * scale) * mask
