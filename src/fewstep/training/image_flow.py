"""A flow on image latents: every objective that text has, on the control whose decoder is continuous."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, ClassVar, Literal

import torch

from fewstep.autoencoders import to_positions
from fewstep.denoisers import FlowModel, PredictionType, RegressionDenoiser
from fewstep.errors import UserError
from fewstep.model import Identity, SavedModel, check_same_autoencoder
from fewstep.objectives import Objective
from fewstep.paths import PATHS
from fewstep.storage import checkpoint_entry, versions
from fewstep.training.image_data import ImageDataModule
from fewstep.training.module import Batch, TrainingModule
from fewstep.training.optimizer import DEFAULT_OPTIMIZER, OptimizerSettings
from fewstep.training.shared import Shared
from fewstep.training.step_data import StepDataModule
from fewstep.training.teacher import check_objective, check_start, check_teacher, flow_fields, start_from
from fewstep.types import Latents, LossOutput


class ImageFlowModule(TrainingModule):
    """Trains a denoiser on the latents of a frozen image autoencoder: the counterpart of :class:`.FlowModule`.

    ``autoencoder`` is a model folder or a checkpoint of images. ``denoiser`` is made from (c, K): the channels of a
    latent and its s * s positions, read row by row. ``teacher`` and ``initialise_from`` are those of
    :class:`.FlowModule`. There are no tokens: an objective's terms through a readout are refused. Logs ``val/loss``.
    Raises ``UserError`` where parts and data do not fit.
    """

    stage_name: ClassVar[str] = "image_flow"
    data_class: ClassVar[type[StepDataModule]] = ImageDataModule
    unit: ClassVar[str] = "images"

    def __init__(
        self,
        data: ImageDataModule,
        autoencoder: str,
        objective: Objective,
        denoiser: Callable[[int, int], RegressionDenoiser],
        path: Literal["linear", "variance_preserving"] = "linear",
        prediction: PredictionType = "x1",
        teacher: str | None = None,
        initialise_from: str | None = None,
        optimizer: OptimizerSettings = DEFAULT_OPTIMIZER,
        seed: int = 0,
    ) -> None:
        super().__init__(optimizer, seed)
        self._data = Shared(data)
        self._base = Shared(load_image_base(autoencoder, data))
        self.objective = objective
        self.path_name = path
        self.prediction: PredictionType = prediction
        positions, channels = self.base.latent_shape()
        self.denoiser = denoiser(channels, positions)
        check_objective(objective, self.denoiser, teacher)
        check_without_tokens(objective)
        self._teacher: Shared[SavedModel | None] = Shared(None)
        if teacher is not None:
            taught_by = load_image_flow(teacher, data, self.base, autoencoder)
            check_teacher(taught_by.identity, self.identity(), objective, teacher)
            self._teacher = Shared(taught_by)
        self._started = "" if initialise_from is None else self._start_from(initialise_from, autoencoder)

    def _start_from(self, source: str, base_source: str) -> str:
        """Take over a trained flow's weights; returns what there is to say of it."""
        model = load_image_flow(source, self.data, self.base, base_source)
        check_start(model.identity, self.identity(), source)
        assert model.denoiser is not None
        new = start_from(self.denoiser, model.denoiser, source)
        told = f"new tensors, without effect at first: {', '.join(new)}" if new else "no tensor is new"
        return f"starts from {source}; {told}"

    @property
    def data(self) -> ImageDataModule:
        """The data module that the module was built for."""
        return self._data.value

    @property
    def base(self) -> SavedModel:
        """The frozen autoencoder."""
        return self._base.value

    def report(self) -> str:
        """What the network starts from, where it does not start anew."""
        return self._started

    def identity(self) -> Identity:
        """What the model is: that of the autoencoder, with the flow."""
        fields = flow_fields(self.objective, self.path_name, self.prediction)
        return replace(self.base.identity, **fields, versions=versions("scikit-learn"))

    def saved_model(self) -> SavedModel:
        """The frozen autoencoder and the denoiser as it is now."""
        return SavedModel(None, self.identity(), self.base.autoencoder, denoiser=self.denoiser)

    def checkpoint_entry(self) -> dict[str, Any]:
        """Manifest and the frozen autoencoder: a checkpoint needs no other file."""
        frozen = {"autoencoder": self.base.image_autoencoder().state_dict()}
        return checkpoint_entry(self.saved_model().manifest(), frozen, None)

    def model(self) -> FlowModel:
        """The denoiser on its path."""
        return FlowModel(self.denoiser, PATHS[self.path_name](), self.prediction)

    def teacher(self) -> FlowModel | None:
        """The trained flow that the objective learns from."""
        return None if self._teacher.value is None else self._teacher.value.flow()

    def progress(self) -> float:
        """The share of the training that is done, in [0, 1]; held-out loss is always that of the end."""
        return min(self.global_step / self.trainer.max_steps, 1.0) if self.training else 1.0

    def on_fit_start(self) -> None:
        """Move the frozen parts to where the trained one is."""
        self.base.to(self.device)
        if self._teacher.value is not None:
            self._teacher.value.to(self.device)

    on_validation_start = on_test_start = on_fit_start

    @torch.no_grad()
    def latents(self, images: torch.Tensor) -> Latents:
        """Latents (B, K, c) of ``images`` (B, C, H, W); every position is real."""
        z = to_positions(self.base.image_autoencoder().encode(images))
        return Latents(z, torch.ones(z.shape[:2], dtype=torch.bool, device=z.device))

    def batch_loss(self, batch: Batch, generator: torch.Generator, *, held_out: bool) -> LossOutput:
        """The objective's loss on the latents of the batch's images."""
        # Validation runs in inference mode, whose tensors no derivative takes; some objectives are made of one.
        recording = torch.is_grad_enabled()
        with torch.inference_mode(False), torch.set_grad_enabled(recording):
            return self.objective.forward(
                self.model(),
                self.latents(batch["images"]),
                tokens=None,
                readout=None,
                generator=generator,
                teacher=self.teacher(),
                progress=self.progress(),
            )


def check_without_tokens(objective: Objective) -> None:
    """Raise ``UserError`` for an objective with a term through a readout, which images do not have."""
    if (weight := getattr(objective, "cross_entropy_weight", 0.0)) > 0:
        raise UserError(
            f"model.objective.cross_entropy_weight is {weight}, but images have no tokens and no readout: give 0"
        )


def load_image_base(path: str, data: ImageDataModule) -> SavedModel:
    """The image model that a flow builds on, without gradients. Raises ``UserError`` unless it has the data's images.

    The same settings are asked for, so that what the autoencoder did not see stays held out.
    """
    model = SavedModel.from_pretrained(path, kind="images")
    theirs, ours = (model.identity.source, model.identity.source_config), (data.images.name, data.images.config)
    if theirs != ours:
        flags = " ".join(f"--data.images.{name}={value}" for name, value in theirs[1].items())
        raise UserError(f"{path} was trained on other images: give --data.images={theirs[0]} {flags}")
    for part in model.parts().values():
        part.requires_grad_(False)
    return model


def load_image_flow(path: str, data: ImageDataModule, base: SavedModel, base_source: str) -> SavedModel:
    """A model with a flow on the autoencoder of ``base``, without gradients.

    Raises ``UserError`` where there is none, or where its images or latents are not those of the run.
    """
    model = load_image_base(path, data)
    model.require("denoiser", source=path)
    check_same_autoencoder(base.autoencoder, model.autoencoder, base_source, path)
    return model
