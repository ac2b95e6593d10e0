"""Training of autoencoders, apart because no denoiser takes part. B batch, L tokens, K positions, D dimension."""

from typing import Any

import torch
from torch import Tensor

from fewstep.autoencoders import ImageAutoencoder
from fewstep.shapes import expand_like, rand, randn
from fewstep.types import LatentEncoder, Latents, LossOutput, Readout, TokenBatch


class Reconstruction:
    """Cross-entropy of the readout on noised latents of partly masked tokens.

    ``noise_level_max`` (rms of the unit-variance latent): each example gets a level uniform in [0, max].
    ``latent_dropout``: probability that a whole latent position is set to zero. ``token_masking``: probability that the
    encoder does not see a token, which must then be inferred from its context.
    """

    def __init__(
        self, *, noise_level_max: float = 1.0, latent_dropout: float = 0.0, token_masking: float = 0.0
    ) -> None:
        if noise_level_max < 0 or not 0 <= latent_dropout < 1 or not 0 <= token_masking < 1:
            raise ValueError(
                f"noise_level_max {noise_level_max}, latent_dropout {latent_dropout}, token_masking {token_masking}: "
                "expected a level >= 0 and probabilities in [0, 1)"
            )
        self.noise_level_max = noise_level_max
        self.latent_dropout = latent_dropout
        self.token_masking = token_masking

    def forward(
        self, autoencoder: LatentEncoder, readout: Readout, tokens: TokenBatch, *, generator: torch.Generator
    ) -> LossOutput:
        """Mean nats per token over the batch; ``per_example`` (B,).

        Token masking needs an encoder whose ``encode`` takes the hidden tokens (B, L) as a third argument.
        """
        encode: Any = autoencoder.encode
        if self.token_masking > 0:
            hidden = rand(tuple(tokens.ids.shape), tokens.ids, generator) < self.token_masking
            latents = encode(tokens.ids, tokens.mask, hidden)
        else:
            latents = encode(tokens.ids, tokens.mask)
        per_example = readout.loss(self.corrupt(latents, generator), tokens.ids, tokens.mask)
        return LossOutput(per_example.mean(), per_example.detach())

    def corrupt(self, latents: Latents, generator: torch.Generator) -> Tensor:
        """Latents (B, K, D) with noise and with whole positions dropped."""
        z = noised(latents.z, self.noise_level_max, generator)
        if self.latent_dropout > 0:
            z = z * (rand(tuple(z.shape[:2]), z, generator) >= self.latent_dropout)[..., None]
        return z


class ImageReconstruction:
    """Squared error of images decoded from latents with noise of a level uniform in [0, ``noise_level_max``]."""

    def __init__(self, *, noise_level_max: float = 1.0) -> None:
        if noise_level_max < 0:
            raise ValueError(f"noise_level_max is {noise_level_max}: expected a level >= 0")
        self.noise_level_max = noise_level_max

    def forward(self, autoencoder: ImageAutoencoder, images: Tensor, *, generator: torch.Generator) -> LossOutput:
        """Mean squared error per pixel value over ``images`` (B, C, H, W) in [0, 1]; ``per_example`` (B,)."""
        z = noised(autoencoder.encode(images), self.noise_level_max, generator)
        per_example = (autoencoder.decode(z) - images).square().flatten(1).mean(1)
        return LossOutput(per_example.mean(), per_example.detach())


def noised(z: Tensor, level_max: float, generator: torch.Generator) -> Tensor:
    """Latents (B, ...) with white noise, its level drawn per example from the uniform law on [0, ``level_max``]."""
    level = level_max * rand((len(z),), z, generator)
    return z + expand_like(level, z) * randn(tuple(z.shape), z, generator)
