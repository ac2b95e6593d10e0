"""Stage one: text, or images, to latents and back."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import nn

from fewstep.autoencoders import ImageAutoencoder
from fewstep.data import vocabulary_size
from fewstep.errors import UserError
from fewstep.model import Identity
from fewstep.objectives import ImageReconstruction, Reconstruction
from fewstep.readouts import token_accuracy
from fewstep.training.data_modules import Batch, ImageDataModule, StepDataModule, TextDataModule
from fewstep.training.module import DEFAULT_OPTIMIZER, OptimizerSettings, TrainingModule, tokens_of
from fewstep.types import LatentEncoder, LossOutput, Readout


class AutoencoderModule(TrainingModule):
    """Trains an autoencoder and its parallel readout by noisy reconstruction.

    ``autoencoder`` is made from the vocabulary size V, ``readout`` from (V, D). They may be any modules that implement
    :class:`~fewstep.types.LatentEncoder` and :class:`~fewstep.types.Readout`. Logs token accuracy and bits per byte on
    clean held-out latents. Raises ``UserError`` if they do not fit each other or the data.
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
        super().__init__(data, optimizer, seed, data.new_model())
        vocab_size = vocabulary_size(data.corpus.tokenizer)
        # The parser builds subclasses of nn.Module; it cannot check protocols with attributes.
        self.autoencoder: Any = implements(autoencoder(vocab_size), LatentEncoder, "model.autoencoder")
        stride = data.block_size // self.autoencoder.num_latents(data.block_size)
        self.readout: Any = implements(readout(vocab_size, self.autoencoder.latent_dim), Readout, "model.readout")
        if self.readout.config.get("stride", stride) != stride:
            raise UserError(
                f"model.readout.stride is {self.readout.config['stride']}, model.autoencoder.stride {stride}: "
                "give both the same"
            )
        self.objective = objective
        mask_embedding = getattr(self.autoencoder, "mask_embedding", None)
        if objective.token_masking > 0 and mask_embedding is None:
            raise UserError(
                f"model.objective.token_masking is {objective.token_masking}, but model.autoencoder has no "
                "mask_embedding: give 0"
            )
        if objective.token_masking == 0 and mask_embedding is not None:
            mask_embedding.requires_grad_(False)  # DDP waits for the gradient of every parameter

    def identity(self) -> Identity:
        """The identity with this stage's objective."""
        return replace(super().identity(), objective=type(self.objective).__name__)

    def batch_loss(self, batch: Batch, generator: torch.Generator) -> LossOutput:
        """Nats per token of the readout on corrupted latents."""
        return self.objective.forward(self.autoencoder, self.readout, tokens_of(batch), generator=generator)

    def scores(self, batch: Batch) -> dict[str, torch.Tensor]:
        """Token accuracy on clean latents, and bits per byte if the tokenizer loses no text."""
        ids, mask = batch["ids"], batch["mask"]
        latents = self.autoencoder.encode(ids, mask)
        nats = self.readout.loss(latents.z, ids, mask) * mask.sum(-1)
        scores = {"token_accuracy": token_accuracy(self.readout, latents.z, ids, mask)}
        if self.data.corpus.report.is_lossless:
            scores["bits_per_byte"] = nats.sum() / math.log(2) / batch["num_bytes"].sum().clamp(min=1)
        return scores


def implements(module: nn.Module, protocol: Any, option: str) -> Any:
    """Return ``module``. Raises ``UserError`` if it lacks a member of ``protocol``."""
    if not isinstance(module, protocol):
        raise UserError(
            f"{option} is a {type(module).__name__}: expected what fewstep.types.{protocol.__name__} asks for"
        )
    return module


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
