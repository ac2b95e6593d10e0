"""Stage one: text, or images, to latents and back."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, ClassVar

import torch

from fewstep.autoencoders import ImageAutoencoder, TransformerAutoencoder
from fewstep.errors import UserError
from fewstep.image_bundle import ImageIdentity, ImageModel
from fewstep.objectives import ImageReconstruction, Reconstruction
from fewstep.readouts import LinearReadout, TransformerReadout, token_accuracy
from fewstep.storage import versions
from fewstep.training.data_modules import Batch, ImageDataModule, StepDataModule, TextDataModule
from fewstep.training.module import TrainingModule, new_model, tokens_of
from fewstep.training.optimizer import DEFAULT_OPTIMIZER, OptimizerSettings
from fewstep.types import LossOutput


class AutoencoderModule(TrainingModule):
    """Trains an autoencoder and its parallel readout by noisy reconstruction.

    ``autoencoder`` is made from the vocabulary size V, ``readout`` from (V, D): sizes belong to the data and to the
    autoencoder, everything else to the configuration. Logs token accuracy and bits per byte on clean held-out latents.
    """

    trained: ClassVar[tuple[str, ...]] = ("autoencoder", "readout")
    stage_name: ClassVar[str] = "autoencoder"

    def __init__(
        self,
        data: TextDataModule,
        autoencoder: Callable[[int], TransformerAutoencoder],
        readout: Callable[[int, int], LinearReadout | TransformerReadout],
        objective: Reconstruction,
        optimizer: OptimizerSettings = DEFAULT_OPTIMIZER,
        seed: int = 0,
    ) -> None:
        super().__init__(data, optimizer, seed, new_model(data))
        vocab_size = len(data.tokenizer)
        self.autoencoder = autoencoder(vocab_size)
        self.autoencoder.num_latents(data.block_size)
        self.readout = readout(vocab_size, self.autoencoder.latent_dim)
        if self.readout.config["stride"] != self.autoencoder.stride:
            raise UserError(
                f"model.readout.stride is {self.readout.config['stride']}, model.autoencoder.stride "
                f"{self.autoencoder.stride}: give both the same"
            )
        self.objective = objective
        if objective.token_masking == 0:  # DDP waits for the gradient of every parameter
            self.autoencoder.mask_embedding.requires_grad_(False)

    def identity(self) -> Any:
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
    saved_class: ClassVar[Any] = ImageModel

    def __init__(
        self,
        data: ImageDataModule,
        autoencoder: Callable[[int, int], ImageAutoencoder],
        objective: ImageReconstruction,
        optimizer: OptimizerSettings = DEFAULT_OPTIMIZER,
        seed: int = 0,
    ) -> None:
        super().__init__(data, optimizer, seed)
        channels, height, width = data.images.image_shape
        if height != width:
            raise UserError(f"images of {height} x {width} pixels: the autoencoder takes square ones only")
        self.autoencoder = autoencoder(channels, height)
        self.objective = objective

    def identity(self) -> ImageIdentity:
        """What the model is."""
        return ImageIdentity(
            data=self.data.images.name,
            data_config=self.data.images.config,
            image_shape=self.autoencoder.image_shape,
            latent_shape=self.autoencoder.latent_shape,
            objective=type(self.objective).__name__,
            noise_level_max=self.objective.noise_level_max,
            versions=versions("scikit-learn"),
        )

    def saved_model(self) -> ImageModel:
        """The model as it is now."""
        return ImageModel(self.identity(), self.autoencoder)

    def batch_loss(self, batch: Batch, generator: torch.Generator) -> LossOutput:
        """Squared error of images decoded from noised latents."""
        return self.objective.forward(self.autoencoder, batch["images"], generator=generator)

    def scores(self, batch: Batch) -> dict[str, torch.Tensor]:
        """PSNR in decibels (mean over images) and R squared on clean latents."""
        images = batch["images"]
        error = (self.autoencoder.decode(self.autoencoder.encode(images)) - images).square().flatten(1).mean(1)
        return {"psnr_db": -10 * error.log10().mean(), "r_squared": 1 - error.mean() / self.data.constant_error}
