"""How the commitment head is trained: on latents noised past the readout's limit. B batch, K positions, D dim."""

import torch

from fewstep.readouts import CommitmentHead
from fewstep.shapes import expand_like, rand, randn
from fewstep.types import Latents, LossOutput, TokenBatch


class CommitmentTraining:
    """Next-token cross-entropy given latents with isotropic noise (this project's definition).

    Each example's level is uniform in [0, ``noise_level_max``] (rms of the unit-variance latent); the default goes
    past the level at which a parallel readout breaks, so that the head leans on its own words where the latent is
    undecided. Raises ``ValueError`` for a negative level.
    """

    def __init__(self, *, noise_level_max: float = 2.0) -> None:
        if noise_level_max < 0:
            raise ValueError(f"noise_level_max is {noise_level_max}, expected a level >= 0 (rms)")
        self.noise_level_max = noise_level_max

    def forward(
        self, head: CommitmentHead, latents: Latents, *, tokens: TokenBatch, generator: torch.Generator
    ) -> LossOutput:
        """Mean nats per token over the batch; ``per_example`` (B,)."""
        z = latents.z
        level = self.noise_level_max * rand((len(z),), z, generator)
        noised = (z + expand_like(level, z) * randn(tuple(z.shape), z, generator)) * latents.mask[..., None]
        per_example = head.loss(noised, tokens.ids, tokens.mask, level)
        return LossOutput(per_example.mean(), per_example.detach())
