"""The stages of the image control, trained like those of text: autoencoder, then a flow on its latents."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from fewstep.errors import UserError
from fewstep.lab.images.autoencoder import ImageAutoencoder, ImageReconstruction, to_positions
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
        self._parts: tuple[Tensor, Tensor] | None = None

    @property
    def parts(self) -> tuple[Tensor, Tensor]:
        """Train and held-out images, each (N, C, H, W) in [0, 1], created on first use."""
        if self._parts is None:
            self._parts = self.images.train(), self.images.held_out()
        return self._parts

    @cached_property
    def constant_error(self) -> float:
        """Mean squared error of the mean train image on the images validated on."""
        train, held_out = self.parts
        return float((held_out[: self.num_validation] - train.mean(0)).square().mean())

    def report(self) -> str:
        """Which images, how many, and the error of a constant image."""
        (train, held_out), settings = self.parts, ", ".join(f"{k} {v}" for k, v in self.images.config.items())
        shape = " x ".join(map(str, self.images.image_shape))
        return (
            f"{self.images.name} ({settings}): {shape}; {len(train):,} to train on, {len(held_out):,} held out\n"
            f"the mean image has a squared error of {self.constant_error:.4f} on the held-out ones"
        )

    def new_model(self) -> SavedModel:
        """An image model without parts."""
        return SavedModel(None, Identity(kind="images", source=self.images.name, source_config=self.images.config))

    def check_model(self, identity: Identity, path: str) -> None:
        """Raise ``UserError`` for other images: what an autoencoder did not see stays held out."""
        if (identity.source, identity.source_config) != (self.images.name, self.images.config):
            flags = " ".join(f"--data.images.{name}={value}" for name, value in identity.source_config.items())
            raise UserError(f"{path} was trained on other images: give --data.images={identity.source} {flags}")

    def train_dataloader(self) -> DataLoader:
        """Batches from the current step to the end. Raises ``UserError`` for too few images."""
        train, _ = self.parts
        rows = list(enumerate(train))
        return self.step_loader(rows, collate_images)

    def val_dataloader(self) -> DataLoader:
        """This rank's share of the first held-out images."""
        rows = list(enumerate(self.parts[1]))
        return DataLoader(rows, batch_sampler=self.held_out_batches(len(rows)), collate_fn=collate_images)  # type: ignore[arg-type]


def collate_images(rows: Sequence[tuple[int, Tensor]]) -> Batch:
    """Rows to one batch: ``images`` (B, C, H, W) and ``index`` (B,) int64, the row numbers."""
    indices, images = zip(*rows, strict=True)
    return {"images": torch.stack(images), "index": torch.tensor(indices)}


class ImageAutoencoderModule(TrainingModule):
    """Trains an image autoencoder by noisy reconstruction: the control whose decoder is continuous.

    ``autoencoder`` is made from (C, S), channels and side. Logs, for clean held-out latents, ``val/psnr_db`` and
    ``val/r_squared``: one minus the squared error over that of the mean train image. Raises ``UserError`` for images
    that are not square.
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
        channels, height, width = data.images.image_shape
        if height != width:
            raise UserError(f"images of {height} x {width} pixels: the autoencoder takes square ones only")
        super().__init__(data, optimizer, seed, data.new_model())
        self.autoencoder = autoencoder(channels, height)
        self.objective = objective

    def identity(self) -> Identity:
        """The identity with this stage's objective."""
        return replace(super().identity(), objective=type(self.objective).__name__)

    def batch_loss(self, batch: Batch, generator: torch.Generator) -> LossOutput:
        """Squared error of images decoded from noised latents."""
        return self.objective.forward(self.autoencoder, batch["images"], generator=generator)

    def scores(self, batch: Batch) -> dict[str, torch.Tensor]:
        """PSNR in decibels (mean over images) and R squared on clean latents."""
        images = batch["images"]
        error = (self.autoencoder.decode(self.autoencoder.encode(images)) - images).square().flatten(1).mean(1)
        return {"psnr_db": -10 * error.log10().mean(), "r_squared": 1 - error.mean() / self.data.constant_error}


class ImageFlowModule(FlowModule):
    """:class:`FlowModule` on the latents of images, read row by row. There are no tokens and no readout."""

    stage_name: ClassVar[str] = "image_flow"
    builds_on: ClassVar[tuple[str, ...]] = ("autoencoder",)
    data_class: ClassVar[type[StepDataModule]] = ImageDataModule

    @torch.no_grad()
    def latents(self, batch: Batch) -> Latents:
        """Latents (B, K, c) of the batch's images; every position is real."""
        z = to_positions(image_autoencoder(self.base).encode(batch["images"]))
        return Latents(z, torch.ones(z.shape[:2], dtype=torch.bool, device=z.device))
