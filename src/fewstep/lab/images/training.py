"""The stages of the image control, trained like those of text: autoencoder, then a flow on its latents."""

from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from typing import Any, ClassVar

import torch
from einops import rearrange
from torch import Tensor
from torch.utils.data import DataLoader, default_collate

from fewstep.errors import UserError
from fewstep.lab.images.autoencoder import ImageAutoencoder, ImageReconstruction
from fewstep.lab.images.generator import image_autoencoder
from fewstep.lab.images.sources import ImageSource
from fewstep.model import Identity, Kind, SavedModel
from fewstep.training.data_modules import Batch, StepDataModule
from fewstep.training.flow import FlowModule
from fewstep.training.module import DEFAULT_OPTIMIZER, OptimizerSettings, TrainingModule
from fewstep.types import Latents, LossOutput


class ImageDataModule(StepDataModule):
    """Images in batches, all of them in memory.

    Args:
        images: the images, ``Digits`` or ``DrawnShapes``.
        batch_size: images in a batch of one process.
        num_validation_images: at most this many held-out images are validated on.
        num_workers: processes that load batches; 0 loads in the training process.
        seed: decides the order of the images.
    """

    kind: ClassVar[Kind] = "images"
    example_name: ClassVar[str] = "images"
    unit: ClassVar[str] = "images"

    def __init__(
        self,
        images: ImageSource,
        batch_size: int = 32,
        num_validation_images: int = 512,
        num_workers: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__(batch_size, num_validation_images, num_workers, seed)
        self.images = images

    @cached_property
    def rows(self) -> list[list[dict[str, Any]]]:
        """Train and held-out images (C, S, S) in [0, 1], each with its number."""
        parts = (self.images.train(), self.images.held_out())
        return [[{"images": image, "index": index} for index, image in enumerate(part)] for part in parts]

    def report(self) -> str:
        """Which images, and how many."""
        (train, held_out), settings = self.rows, ", ".join(f"{k} {v}" for k, v in self.images.config.items())
        name, shape = type(self.images).__name__, " x ".join(map(str, train[0]["images"].shape))
        return f"{name} ({settings}): {shape}; {len(train):,} to train on, {len(held_out):,} held out"

    def new_model(self) -> SavedModel:
        """An image model without parts."""
        source = type(self.images).__name__
        return SavedModel(None, Identity(kind="images", source=source, source_config=self.images.config))

    def check_model(self, identity: Identity, path: str) -> None:
        """Raise ``UserError`` for other images: what an autoencoder did not see stays held out."""
        if (identity.source, identity.source_config) != (type(self.images).__name__, self.images.config):
            flags = " ".join(f"--data.images.{name}={value}" for name, value in identity.source_config.items())
            raise UserError(f"{path} was trained on other images: give --data.images={identity.source} {flags}")

    def train_dataloader(self) -> DataLoader:
        """Batches from the current step to the end. Raises ``UserError`` for too few images."""
        return self.step_loader(self.rows[0], default_collate)

    def val_dataloader(self) -> DataLoader:
        """This rank's share of the first held-out images."""
        rows: Any = self.rows[1]
        return DataLoader(rows, batch_sampler=self.held_out_batches(len(rows)))


class ImageAutoencoderModule(TrainingModule):
    """Trains an image autoencoder by noisy reconstruction: the control whose decoder is continuous.

    ``autoencoder`` is made from (C, S), channels and side. Logs ``val/psnr_db`` of clean held-out latents.
    """

    trained: ClassVar[tuple[str, ...]] = ("autoencoder",)
    stage_name: ClassVar[str] = "image_autoencoder"
    data_class: ClassVar[type[StepDataModule]] = ImageDataModule

    def __init__(
        self,
        data: ImageDataModule,
        autoencoder: Callable[[int, int], ImageAutoencoder],
        objective: ImageReconstruction,
        optimizer: OptimizerSettings = DEFAULT_OPTIMIZER,
        seed: int = 0,
    ) -> None:
        super().__init__(data, optimizer, seed, data.new_model())
        self.autoencoder = autoencoder(*data.images.held_out(1).shape[1:3])
        self.objective = objective

    def identity(self) -> Identity:
        """The identity with this stage's objective."""
        return replace(super().identity(), objective=type(self.objective).__name__)

    def batch_loss(self, batch: Batch, generator: torch.Generator) -> LossOutput:
        """Squared error of images decoded from noised latents."""
        return self.objective.forward(self.autoencoder, batch["images"], generator=generator)

    def scores(self, batch: Batch) -> dict[str, Tensor]:
        """PSNR in decibels (mean over images) on clean latents."""
        images = batch["images"]
        error = (self.autoencoder.decode(self.autoencoder.encode(images)) - images).square().flatten(1).mean(1)
        return {"psnr_db": -10 * error.log10().mean()}


class ImageFlowModule(FlowModule):
    """:class:`FlowModule` on the latents of images, read row by row. There are no tokens and no readout."""

    stage_name: ClassVar[str] = "image_flow"
    builds_on: ClassVar[tuple[str, ...]] = ("autoencoder",)
    data_class: ClassVar[type[StepDataModule]] = ImageDataModule

    @torch.no_grad()
    def latents(self, batch: Batch) -> Latents:
        """Latents (B, K, c) of the batch's images; every position is real."""
        z = rearrange(image_autoencoder(self.base).encode(batch["images"]), "b c h w -> b (h w) c")
        return Latents(z, torch.ones(z.shape[:2], dtype=torch.bool, device=z.device))
