"""Finite scalar quantisation, soft or hard; apart so that other models do not load it.

B batch, L tokens, K latent positions, D latent dimension.
"""

from typing import Any

import torch
from torch import Tensor

from fewstep.autoencoders.transformer import TransformerAutoencoder
from fewstep.schedules import upcast
from fewstep.shapes import check_sizes


class QuantisedAutoencoder(TransformerAutoencoder):
    """A transformer encoder whose latents lie on, or near, a grid of ``levels`` values per dimension.

    Finite scalar quantisation (arXiv:2309.15505, section 3): every dimension is bounded by tanh and rounded to
    ``levels`` equally spaced values in [-1, 1], with a straight-through gradient; whitening scales the result to unit
    variance. No codebook is learned: the grid has levels^D points. ``softness`` in [0, 1] is the share of the rounding
    that is left out: 0 is the grid itself, 1 is tanh alone. The grid is symmetric; that of the paper lacks 1 if the
    number of levels is even. Raises ``ValueError`` for fewer than 2 levels and for a softness out of range.
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
