"""Training of the commitment head, apart because it trains a readout. B batch, K positions, D latent dimension."""

from collections.abc import Callable

import torch
from torch import Tensor

from fewstep.readouts import CommitmentHead
from fewstep.shapes import expand_like, rand, randn
from fewstep.types import Latents, LossOutput, TokenBatch

Regenerate = Callable[[Latents, torch.Generator], Tensor]
"""Latents of data -> latents (B, K, D) that a frozen flow samples from a noised version of them."""


class HeadTraining:
    """Next-token cross-entropy given latents with isotropic noise.

    Each example's level is uniform in [0, ``noise_level_max``] (rms of the unit-variance latent); the default goes past
    the level at which a parallel readout breaks, so that the head relies on its own tokens where the latent is
    undecided. ``prefix_dropout``: probability that an example's earlier tokens are hidden from the head, so that
    decoding without them is a trained state. ``generated_share``: probability that an example's latents are replaced by
    those that ``regenerate`` returns.
    """

    def __init__(
        self, *, noise_level_max: float = 2.0, prefix_dropout: float = 0.0, generated_share: float = 0.0
    ) -> None:
        if not noise_level_max >= 0:
            raise ValueError(f"noise_level_max is {noise_level_max}: expected a level >= 0 (rms)")
        for name, share in (("prefix_dropout", prefix_dropout), ("generated_share", generated_share)):
            if not 0 <= share < 1:
                raise ValueError(f"{name} is {share}: expected a share of the examples in [0, 1)")
        self.noise_level_max = noise_level_max
        self.prefix_dropout = prefix_dropout
        self.generated_share = generated_share

    def forward(
        self,
        head: CommitmentHead,
        latents: Latents,
        *,
        tokens: TokenBatch,
        generator: torch.Generator,
        regenerate: Regenerate | None = None,
    ) -> LossOutput:
        """Mean nats per token over the batch; ``per_example`` (B,). ``generated_share`` needs ``regenerate``."""
        z = latents.z
        if self.generated_share > 0:
            z = self._partly_generated(latents, regenerate, generator)
        level = self.noise_level_max * rand((len(z),), z, generator)
        noised = (z + expand_like(level, z) * randn(tuple(z.shape), z, generator)) * latents.mask[..., None]
        sees_tokens = None
        if self.prefix_dropout > 0:
            sees_tokens = rand((len(z),), z, generator) >= self.prefix_dropout
        per_example = head.loss(noised, tokens.ids, tokens.mask, level, sees_tokens)
        return LossOutput(per_example.mean(), per_example.detach())

    def _partly_generated(self, latents: Latents, regenerate: Regenerate | None, generator: torch.Generator) -> Tensor:
        if regenerate is None:
            raise ValueError(
                f"generated_share is {self.generated_share}, but there is no flow to generate with: set it to 0, or "
                "pass regenerate"
            )
        chosen = rand((len(latents.z),), latents.z, generator) < self.generated_share
        generated = regenerate(latents, generator).to(latents.z.dtype)
        return torch.where(expand_like(chosen, generated), generated, latents.z)
