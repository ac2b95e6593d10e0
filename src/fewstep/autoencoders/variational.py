"""Latents with a posterior, for a KL term in the loss; apart so that other models do not load them.

B batch, L tokens, K latent positions, D latent dimension.
"""

from dataclasses import dataclass

from torch import Tensor, nn

from fewstep.autoencoders.transformer import TransformerAutoencoder
from fewstep.schedules import upcast
from fewstep.shapes import Generators, randn
from fewstep.types import Latents


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
    returns the mean of the posterior; :class:`fewstep.objectives.Reconstruction` trains on samples, which it draws.

    The posterior is that of the whitened latent: its standard deviation is in rms of the data, as noise levels are, and
    the KL divergence is that to the noise a flow starts from. Since whitening fixes the scale of the mean, the KL term
    sets how much noise a latent carries, and cannot switch a dimension off.
    """

    def __init__(
        self,
        vocab_size: int,
        latent_dim: int,
        *,
        stride: int = 1,
        width: int = 128,
        depth: int = 2,
        num_heads: int = 4,
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
