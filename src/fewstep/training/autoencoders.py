"""Stage one: text, or images, to latents and back."""

import math
from collections.abc import Callable
from dataclasses import replace
from inspect import signature
from typing import Any, ClassVar

import torch
from torch import nn

from fewstep.autoencoders import ImageAutoencoder
from fewstep.errors import UserError
from fewstep.model import Identity, SavedModel
from fewstep.objectives import ImageReconstruction, Reconstruction
from fewstep.readouts import token_accuracy
from fewstep.training.data_modules import Batch, ImageDataModule, StepDataModule, TextDataModule
from fewstep.training.module import TrainingModule, new_model, tokens_of
from fewstep.training.optimizer import DEFAULT_OPTIMIZER, OptimizerSettings
from fewstep.types import LatentEncoder, LossOutput, Readout


class AutoencoderModule(TrainingModule):
    """Trains an autoencoder and its parallel readout by noisy reconstruction.

    ``autoencoder`` is built from the vocabulary size V, ``readout`` from (V, D): sizes belong to the data and to the
    autoencoder, everything else to the configuration. They may be of any package, if they implement
    :class:`~fewstep.types.LatentEncoder` and :class:`~fewstep.types.Readout`. Logs token accuracy and bits per byte on
    clean held-out latents.
    """

    trained: ClassVar[tuple[str, ...]] = ("autoencoder", "readout")
    stage_name: ClassVar[str] = "autoencoder"

    def __init__(
        self,
        data: TextDataModule,
        autoencoder: Callable[[int], nn.Module],
        readout: Callable[[int, int], nn.Module],
        objective: Reconstruction,
        optimizer: OptimizerSettings = DEFAULT_OPTIMIZER,
        seed: int = 0,
    ) -> None:
        super().__init__(data, optimizer, seed, new_model(data))
        vocab_size = len(data.tokenizer)
        self.autoencoder: LatentEncoder = implemented(LatentEncoder, autoencoder(vocab_size), "model.autoencoder")
        stride = data.block_size // self.autoencoder.num_latents(data.block_size)
        self.readout: Readout = implemented(Readout, readout(vocab_size, self.autoencoder.latent_dim), "model.readout")
        if (theirs := self.readout.config.get("stride", stride)) != stride:
            raise UserError(f"model.readout.stride is {theirs}, model.autoencoder.stride {stride}: give both the same")
        self.objective = objective
        if objective.token_masking > 0 and "hidden" not in signature(self.autoencoder.encode).parameters:
            raise UserError(
                f"model.objective.token_masking is {objective.token_masking}, but {type(self.autoencoder).__name__} "
                "cannot hide tokens (its encode takes no `hidden`): give 0"
            )
        if objective.token_masking == 0 and hasattr(self.autoencoder, "mask_embedding"):
            self.autoencoder.mask_embedding.requires_grad_(False)  # DDP waits for the gradient of every parameter

    def identity(self) -> Identity:
        """The identity with this stage's objective."""
        return replace(super().identity(), objective=type(self.objective).__name__)

    def batch_loss(self, batch: Batch, generator: torch.Generator) -> LossOutput:
        """Nats per token of the readout on corrupted latents."""
        return self.objective.forward(self.autoencoder, self.readout, tokens_of(batch), generator=generator)

    def scores(self, batch: Batch) -> dict[str, torch.Tensor]:
        """Token accuracy and bits per byte on clean latents."""
        ids, mask = batch["ids"], batch["mask"]
        latents = self.autoencoder.encode(ids, mask)
        nats = self.readout.loss(latents.z, ids, mask) * mask.sum(-1)
        bits_per_byte = nats.sum() / math.log(2) / batch["num_bytes"].sum().clamp(min=1)
        accuracy = token_accuracy(self.readout, latents.z, ids, mask)
        return {"token_accuracy": accuracy, "bits_per_byte": bits_per_byte}


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
        identity = Identity(
            kind="images",
            source=data.images.name,
            source_config=data.images.config,
            objective=type(objective).__name__,
        )
        super().__init__(data, optimizer, seed, SavedModel(None, identity))
        self.autoencoder = autoencoder(channels, height)
        self.objective = objective

    def batch_loss(self, batch: Batch, generator: torch.Generator) -> LossOutput:
        """Squared error of images decoded from noised latents."""
        return self.objective.forward(self.autoencoder, batch["images"], generator=generator)

    def scores(self, batch: Batch) -> dict[str, torch.Tensor]:
        """PSNR in decibels (mean over images) and R squared on clean latents."""
        images = batch["images"]
        error = (self.autoencoder.decode(self.autoencoder.encode(images)) - images).square().flatten(1).mean(1)
        return {"psnr_db": -10 * error.log10().mean(), "r_squared": 1 - error.mean() / self.data.constant_error}


def implemented(protocol: Any, part: nn.Module, name: str) -> Any:
    """``part``, if it implements ``protocol``. Raises ``UserError`` otherwise."""
    if not isinstance(part, protocol):
        raise UserError(f"{name} is a {type(part).__name__}: expected a class with the members of {protocol.__name__}")
    return part
