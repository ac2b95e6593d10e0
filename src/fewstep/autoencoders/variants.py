"""Other latents than the plain ones: on a sphere, on a grid, with a posterior; apart, so that other models load faster.

B batch, L tokens, K latent positions, D latent dimension, V vocabulary.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fewstep.autoencoders.transformer import TransformerAutoencoder
from fewstep.schedules import upcast
from fewstep.shapes import Generators, check_sizes, randn
from fewstep.types import Latents


class SphericalEmbeddings(nn.Module):
    """A learned embedding per token, scaled to unit rms: a :class:`~fewstep.types.LatentEncoder`.

    A latent is the token's row of the table at length sqrt(D), after LangFlow (arXiv:2604.11748). No token sees
    another, so a :class:`~fewstep.denoisers.CategoricalDenoiser` fits them. The length is fixed, so that training
    cannot grow the table to escape the noise.
    """

    def __init__(self, vocab_size: int, latent_dim: int) -> None:
        super().__init__()
        self.config = {"vocab_size": vocab_size, "latent_dim": latent_dim}
        check_sizes("SphericalEmbeddings", self.config)
        self.latent_dim = latent_dim
        self.table = nn.Embedding(vocab_size, latent_dim)

    def num_latents(self, num_tokens: int) -> int:
        """K = L."""
        return num_tokens

    def encode(self, ids: Tensor, mask: Tensor) -> Latents:
        """Token ``ids`` and ``mask`` (B, L) to latents ``z`` (B, L, D) of length sqrt(D), zero at padding."""
        return Latents(self._on_sphere(self.table(ids)) * mask[..., None], mask.bool())

    @torch.no_grad()
    def codebook(self) -> Tensor:
        """The latent of every token, (V, D)."""
        return self._on_sphere(self.table.weight)

    def _on_sphere(self, rows: Tensor) -> Tensor:
        return F.normalize(upcast(rows), dim=-1) * self.latent_dim**0.5


class QuantisedAutoencoder(TransformerAutoencoder):
    """A transformer encoder whose latents lie on, or near, a grid of ``levels`` values per dimension.

    Finite scalar quantisation (arXiv:2309.15505, section 3): every dimension is bounded by tanh and rounded to
    ``levels`` equally spaced values in [-1, 1], with a straight-through gradient; whitening scales the result to unit
    variance. ``softness`` in [0, 1] is the share of the rounding that is left out: 0 is the grid itself, 1 is tanh
    alone. The grid is symmetric; that of the paper lacks 1 if the number of levels is even.
    """

    def __init__(
        self,
        vocab_size: int,
        latent_dim: int,
        *,
        levels: int = 5,
        softness: float = 0.0,
        stride: int = 1,
        width: int = 128,
        depth: int = 2,
        num_heads: int = 4,
    ) -> None:
        check_sizes("QuantisedAutoencoder", {"levels": levels}, least=2)
        if not 0 <= softness <= 1:
            raise ValueError(f"QuantisedAutoencoder: softness is {softness}, expected a share in [0, 1]")
        super().__init__(vocab_size, latent_dim, stride=stride, width=width, depth=depth, num_heads=num_heads)
        self.config: dict[str, Any] = {**self.config, "levels": levels, "softness": softness}
        self.levels = levels
        self.softness = softness

    def encode_raw(self, ids: Tensor, mask: Tensor, hidden: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Latents in [-1, 1] before whitening (B, K, D), in at least float32, and their mask (B, K)."""
        raw, latent_mask = super().encode_raw(ids, mask, hidden)
        return quantise(upcast(raw).tanh(), self.levels, self.softness), latent_mask


def quantise(u: Tensor, levels: int, softness: float = 0.0) -> Tensor:
    """``u`` in [-1, 1] moved to the nearest of ``levels`` equally spaced values, less a share ``softness`` of the move.

    The gradient is that of ``u`` (straight-through, arXiv:1308.3432).
    """
    half = (levels - 1) / 2
    rounded = ((u + 1) * half).round() / half - 1
    # u - u.detach() is exactly 0, so that the values are those of the grid to the bit.
    return torch.lerp(rounded, u, softness).detach() + (u - u.detach())


@dataclass(frozen=True)
class Posterior:
    """Independent normal laws of the numbers of a latent; ``log_variance`` (B, K, D) is in the units of ``mean.z``."""

    mean: Latents
    log_variance: Tensor

    def sample(self, generator: Generators) -> Latents:
        """Latents drawn from it, zero at padding (arXiv:1312.6114, eq. 9)."""
        z, mask = self.mean.z, self.mean.mask
        noise = (self.log_variance / 2).exp() * randn(tuple(z.shape), z, generator)
        return Latents(z + noise * mask[..., None], mask)

    def kl_nats(self) -> Tensor:
        """KL divergence (B,) to the standard normal, summed over real positions (arXiv:1312.6114, appendix B)."""
        nats = (self.mean.z.square() + self.log_variance.expm1() - self.log_variance).sum(-1) / 2
        return (nats * self.mean.mask).sum(-1)


class VariationalAutoencoder(TransformerAutoencoder):
    """A transformer encoder with a posterior around each latent, for a loss with a KL term (arXiv:1312.6114).

    With hidden tokens in training it is the recipe of Cola DLM's text autoencoder (arXiv:2605.06548). ``encode``
    returns the mean of the posterior; :class:`fewstep.objectives.Reconstruction` trains on samples.

    The posterior is that of the whitened latent, so its standard deviation is in rms of the data, as noise levels are.
    Since whitening fixes the scale of the mean, the KL term sets how much noise a latent carries, and cannot switch a
    dimension off.
    """

    def __init__(
        self, vocab_size: int, latent_dim: int, *, stride: int = 1, width: int = 128, depth: int = 2, num_heads: int = 4
    ) -> None:
        super().__init__(vocab_size, latent_dim, stride=stride, width=width, depth=depth, num_heads=num_heads)
        self.to_log_variance = nn.Linear(stride * width, latent_dim)
        for parameter in self.to_log_variance.parameters():
            nn.init.zeros_(parameter)

    def posterior(self, ids: Tensor, mask: Tensor, hidden: Tensor | None = None) -> Posterior:
        """Posterior of the latents of ``ids`` (B, L); ``hidden`` (B, L) tokens are masked out of the input."""
        features, latent_mask = self.features(ids, mask, hidden)
        mean = Latents(self.whitening(self.to_latent(features), latent_mask), latent_mask)
        return Posterior(mean, upcast(self.to_log_variance(features)))
