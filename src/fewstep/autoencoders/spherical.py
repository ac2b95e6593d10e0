"""Learned embeddings on a sphere, apart so that only models on them load it. B batch, L tokens, V vocabulary."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fewstep.schedules import upcast
from fewstep.shapes import check_sizes
from fewstep.types import Latents


class SphericalEmbeddings(nn.Module):
    """A learned embedding per token, scaled to unit rms: a :class:`~fewstep.types.LatentEncoder`.

    A latent is the token's row of the table at length sqrt(D), after LangFlow (arXiv:2604.11748). No token sees
    another, so the latents are a code of the vocabulary (:meth:`codebook`), and a
    :class:`~fewstep.denoisers.CategoricalDenoiser` fits them. The length is fixed, so noise of one level is the same
    share of every token's latent, and training cannot grow the table to escape it.
    """

    def __init__(self, vocab_size: int, latent_dim: int) -> None:
        super().__init__()
        self.config = {"vocab_size": vocab_size, "latent_dim": latent_dim}
        check_sizes("SphericalEmbeddings", self.config)
        self.latent_dim = latent_dim
        self.table = nn.Embedding(vocab_size, latent_dim)

    def num_latents(self, num_tokens: int) -> int:
        """K = L: a latent per token."""
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
