"""How the image autoencoder is trained: images back from noised latents. B batch."""

import torch

from fewstep.autoencoders import ImageAutoencoder
from fewstep.objectives.reconstruction import noised
from fewstep.types import LossOutput


class ImageReconstruction:
    """Squared error of images decoded from noised latents (this project's definition).

    ``noise_level_max`` (rms of the unit-variance latent): each image gets a level uniform in [0, max], as text gets it
    in :class:`~fewstep.objectives.Reconstruction`. Raises ``ValueError`` for a negative level.
    """

    def __init__(self, *, noise_level_max: float = 1.0) -> None:
        if noise_level_max < 0:
            raise ValueError(f"noise_level_max is {noise_level_max}: expected a level >= 0")
        self.noise_level_max = noise_level_max

    def forward(self, autoencoder: ImageAutoencoder, images: torch.Tensor, *, generator: torch.Generator) -> LossOutput:
        """Mean squared error a pixel value over ``images`` (B, C, H, W) in [0, 1]; ``per_example`` (B,)."""
        z = noised(autoencoder.encode(images), self.noise_level_max, generator)
        per_example = (autoencoder.decode(z) - images).square().flatten(1).mean(1)
        return LossOutput(per_example.mean(), per_example.detach())
