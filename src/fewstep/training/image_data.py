"""Images for the trainer, in an order that a resumed run repeats."""

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from fewstep.data import ImageSource
from fewstep.training.step_data import StepDataModule


class ImageDataModule(StepDataModule):
    """Images in batches, all of them in memory.

    Args:
        images: the images, ``Digits`` or ``DrawnShapes``.
        batch_size: images in a batch of one process.
        num_validation_images: at most this many held-out images are validated on.
        num_workers: processes that load batches; 0 loads in the training process.
        seed: decides the order of the images.
    """

    example_name: ClassVar[str] = "images"
    validation_name: ClassVar[str] = "num_validation_images"

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
        """Train and held-out images, each (N, C, H, W) in [0, 1], made on first use."""
        if self._parts is None:
            self._parts = self.images.train(), self.images.held_out()
        return self._parts

    def constant_error(self) -> float:
        """Mean squared error on the images validated on when the mean train image is given for each of them."""
        train, held_out = self.parts
        return float((held_out[: self.num_validation] - train.mean(0)).square().mean())

    def report(self) -> str:
        """Which images, how many, and what a constant image costs."""
        (train, held_out), settings = self.parts, ", ".join(f"{k} {v}" for k, v in self.images.config.items())
        shape = " x ".join(map(str, self.images.image_shape))
        return (
            f"{self.images.name} ({settings}): {shape}; {len(train):,} to train on, {len(held_out):,} held out\n"
            f"the mean image has a squared error of {self.constant_error():.4f} on the held-out ones"
        )

    def train_dataloader(self) -> DataLoader:
        """Batches from where the run stands to its end. Raises ``UserError`` for too few images."""
        train, _ = self.parts
        batches = self.step_batches(len(train))
        return DataLoader(Rows(train), batch_sampler=batches, collate_fn=collate_images, num_workers=self.num_workers)

    def val_dataloader(self) -> DataLoader:
        """The first held-out images, in order; each process sees its share of batches."""
        _, held_out = self.parts
        batches = self.held_out_batches(len(held_out))
        return DataLoader(Rows(held_out), batch_sampler=batches, collate_fn=collate_images)


class Rows(Dataset[tuple[int, Tensor]]):
    """Images (N, C, H, W) as rows, each with its number."""

    def __init__(self, images: Tensor) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[int, Tensor]:
        return index, self.images[index]


def collate_images(rows: Sequence[tuple[int, Tensor]]) -> dict[str, Tensor]:
    """Rows to one batch: ``images`` (B, C, H, W) and ``index`` (B,) int64, the row numbers."""
    indices, images = zip(*rows, strict=True)
    return {"images": torch.stack(images), "index": torch.tensor(indices)}
