"""Tiny image models."""

from dataclasses import replace
from typing import Any

import torch

from fewstep.denoisers import RegressionDenoiser
from fewstep.lab.images import ImageAutoencoder
from fewstep.model import Identity, SavedModel
from tests.bundles import randomise


def tiny_image_model(seed: int = 0) -> SavedModel:
    """An autoencoder of 8x8 digits with random weights and statistics, in evaluation mode."""
    with torch.random.fork_rng():  # constructors draw from the global generator
        torch.manual_seed(seed)
        autoencoder = ImageAutoencoder(1, 8, latent_channels=2, width=6)
    generator = torch.Generator().manual_seed(seed)
    randomise(autoencoder, generator)
    autoencoder.whitening.mean.copy_(torch.randn(8, generator=generator))
    autoencoder.whitening.variance.copy_(1 + torch.rand(8, generator=generator))
    settings = {"num_held_out": 97, "seed": 3}
    identity = Identity(kind="images", source="Digits", source_config=settings, objective="ImageReconstruction")
    return SavedModel(None, identity, autoencoder).to("cpu")


def tiny_image_flow(seed: int = 0, *, two_times: bool = False, **changes: Any) -> SavedModel:
    """The tiny image model with a flow of random weights; ``changes`` of its identity."""
    model = tiny_image_model()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        denoiser = RegressionDenoiser(2, 4, width=16, depth=1, num_heads=2, two_times=two_times)
    randomise(denoiser, torch.Generator().manual_seed(seed))
    flow = {"objective": "FlowMatching", "grid_mean": 0.3, "grid_std": 0.8, **changes}
    return SavedModel(None, replace(model.identity, **flow), model.autoencoder, denoiser=denoiser).to("cpu")
