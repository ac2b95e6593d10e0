"""Images to latents and back: what the text autoencoder is compared with."""

from collections.abc import Callable
from typing import Any, ClassVar

import torch

from fewstep.autoencoders import ImageAutoencoder
from fewstep.errors import UserError
from fewstep.model import Identity, SavedModel
from fewstep.objectives import ImageReconstruction
from fewstep.storage import checkpoint_entry, versions
from fewstep.training.image_data import ImageDataModule
from fewstep.training.module import Batch, TrainingModule
from fewstep.training.optimizer import DEFAULT_OPTIMIZER, OptimizerSettings
from fewstep.training.shared import Shared
from fewstep.training.step_data import StepDataModule
from fewstep.types import LossOutput


class ImageAutoencoderModule(TrainingModule):
    """Trains an image autoencoder by noisy reconstruction.

    ``autoencoder`` is made from (C, S): channels and side belong to the data, everything else to the configuration.
    Logs, for clean held-out latents, ``val/psnr_db`` (mean over images) and ``val/r_squared``: one minus the squared
    error over that of the mean train image. Raises ``UserError`` for images that are not square.
    """

    stage_name: ClassVar[str] = "image_autoencoder"
    data_class: ClassVar[type[StepDataModule]] = ImageDataModule
    unit: ClassVar[str] = "images"

    def __init__(
        self,
        data: ImageDataModule,
        autoencoder: Callable[[int, int], ImageAutoencoder],
        objective: ImageReconstruction,
        optimizer: OptimizerSettings = DEFAULT_OPTIMIZER,
        seed: int = 0,
    ) -> None:
        super().__init__(optimizer, seed)
        channels, height, width = data.images.image_shape
        if height != width:
            raise UserError(f"images of {height} x {width} pixels: the autoencoder takes square ones only")
        self._data = Shared(data)
        self.autoencoder = autoencoder(channels, height)
        self.objective = objective
        self._constant_error = 0.0

    @property
    def data(self) -> ImageDataModule:
        """The data module that the module was built for."""
        return self._data.value

    def identity(self) -> Identity:
        """What the model is."""
        return Identity(
            kind="images",
            source=self.data.images.name,
            source_config=self.data.images.config,
            objective=type(self.objective).__name__,
            versions=versions("scikit-learn"),
        )

    def saved_model(self) -> SavedModel:
        """The model as it is now."""
        return SavedModel(None, self.identity(), self.autoencoder)

    def checkpoint_entry(self) -> dict[str, Any]:
        """The manifest: everything else is trained."""
        return checkpoint_entry(self.saved_model().manifest(), {}, None)

    def batch_loss(self, batch: Batch, generator: torch.Generator, *, held_out: bool) -> LossOutput:
        """Squared error of images from noised latents."""
        return self.objective.forward(self.autoencoder, batch["images"], generator=generator)

    def on_validation_start(self) -> None:
        """Find what the mean image costs on what is validated on."""
        self._constant_error = self.data.constant_error()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """The training loss, and the two scores on clean latents."""
        super().validation_step(batch, batch_idx)
        images = batch["images"]
        decoded = self.autoencoder.decode(self.autoencoder.encode(images))
        error = (decoded - images).square().flatten(1).mean(1)
        scores = {"val/psnr_db": -10 * error.log10().mean(), "val/r_squared": 1 - error.mean() / self._constant_error}
        size = self.data.held_out_weight(batch_idx, len(images))
        self.log_dict(scores, prog_bar=True, batch_size=size, sync_dist=True)
