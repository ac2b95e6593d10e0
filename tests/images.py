"""Tiny image models, and training runs on digits that take seconds."""

import torch

from fewstep.autoencoders import ImageAutoencoder
from fewstep.image_bundle import ImageIdentity, ImageModel
from tests.bundles import randomise
from tests.runs import CONFIGS


def tiny_image_model(seed: int = 0) -> ImageModel:
    """An autoencoder of 8x8 digits with random weights and statistics, in evaluation mode."""
    with torch.random.fork_rng():  # constructors draw from the global generator
        torch.manual_seed(seed)
        autoencoder = ImageAutoencoder(1, 8, latent_channels=2, width=6)
    generator = torch.Generator().manual_seed(seed)
    randomise(autoencoder, generator)
    autoencoder.whitening.mean.copy_(torch.randn(8, generator=generator))
    autoencoder.whitening.variance.copy_(1 + torch.rand(8, generator=generator))
    identity = ImageIdentity(
        "Digits", {"num_held_out": 97, "seed": 3}, (1, 8, 8), (2, 2, 2), "ImageReconstruction", 0.5
    )
    return ImageModel(identity, autoencoder).to("cpu")


def image_arguments(*flags: str, steps: int = 4) -> list[str]:
    """``fit`` of the image stage on digits, tiny and with every step logged; ``flags`` come last."""
    steps_flags = [f"--trainer.max_steps={steps}", f"--trainer.val_check_interval={max(steps // 2, 1)}"]
    common = ["--trainer.log_every_n_steps=1", "--trainer.enable_progress_bar=false", "--trainer.accelerator=cpu"]
    return ["fit", "--config", str(CONFIGS / "digits.yaml"), "--size", "debug", *steps_flags, *common, *flags]
