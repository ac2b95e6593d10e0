"""Stage two: a flow on the latents of text, and on those of images."""

from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any, ClassVar

import torch

from fewstep.autoencoders import to_positions
from fewstep.denoisers import FlowModel, PredictionType, RegressionDenoiser
from fewstep.errors import UserError
from fewstep.model import Identity, PathName, SavedModel, check_same_autoencoder
from fewstep.objectives import Objective
from fewstep.paths import PATHS
from fewstep.training.data_modules import Batch, ImageDataModule, StepDataModule, TextDataModule
from fewstep.training.latent_cache import LatentCache
from fewstep.training.module import Shared, TrainingModule, load_base, tokens_of
from fewstep.training.optimizer import DEFAULT_OPTIMIZER, OptimizerSettings
from fewstep.training.teacher import (
    check_objective,
    check_start,
    check_teacher,
    info_of_model,
    info_of_run,
    start_from,
)
from fewstep.types import Latents, LossOutput


class FlowModule(TrainingModule):
    """Trains a denoiser on the frozen autoencoder's latents, by flow matching or a few-step objective.

    ``autoencoder`` is a model folder or checkpoint of stage one; ``denoiser`` is made from (D, K). ``teacher`` is a
    model with the trained flow that some objectives learn from. ``initialise_from`` is one with a flow of the same
    architecture, path and prediction to start from; if the network here has a second time, its tensors are new and
    start without effect (:func:`.start_from`). ``latent_cache_dir`` keeps the latents of the train split on disk.
    ``allow`` names packages beside fewstep whose classes these models may have.
    Raises ``UserError`` if parts and data do not fit.
    """

    trained: ClassVar[tuple[str, ...]] = ("denoiser",)
    stage_name: ClassVar[str] = "flow"

    def __init__(
        self,
        data: TextDataModule,
        autoencoder: str,
        objective: Objective,
        denoiser: Callable[[int, int], RegressionDenoiser],
        path: PathName = "linear",
        prediction: PredictionType = "x1",
        teacher: str | None = None,
        initialise_from: str | None = None,
        optimizer: OptimizerSettings = DEFAULT_OPTIMIZER,
        latent_cache_dir: str | None = None,
        allow: list[str] | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(data, optimizer, seed, self.load(autoencoder, data, allow=allow))
        self.path = PATHS[path]()
        self.prediction: PredictionType = prediction
        self.objective = objective
        self.info = info_of_run(objective, path, prediction)
        self.latent_cache_dir = latent_cache_dir
        self._cache: LatentCache | None = None
        self.denoiser = denoiser(*self.latent_size())
        check_objective(objective, self.denoiser, teacher)
        self._teacher: Shared[Any] = Shared(None)
        if teacher is not None:
            self._teacher = Shared(self._load_flow(teacher, autoencoder, allow))
            check_teacher(info_of_model(self._teacher.value), self.info, objective, teacher)
        self._started = ""
        if initialise_from is not None:
            start = self._load_flow(initialise_from, autoencoder, allow)
            check_start(info_of_model(start), self.info, initialise_from)
            new = start_from(self.denoiser, start.parts()["denoiser"], initialise_from)
            tensors = f"new tensors, without effect at first: {', '.join(new)}" if new else "no tensor is new"
            self._started = f"starts from {initialise_from}; {tensors}"

    @classmethod
    def load(cls, path: str, data: Any, *, needs_flow: bool = False, allow: list[str] | None = None) -> SavedModel:
        """The frozen model at ``path``, which must fit ``data``."""
        return load_base(path, data, "autoencoder", "denoiser" if needs_flow else "readout", allow=allow or ())

    def _load_flow(self, path: str, base_path: str, allow: list[str] | None) -> SavedModel:
        model = self.load(path, self.data, needs_flow=True, allow=allow)
        check_same_autoencoder(self.base.autoencoder, model.autoencoder, base_path, path)
        return model

    def latent_size(self) -> tuple[int, int]:
        """Latent dimension D and positions K."""
        positions, latent_dim = self.base.latent_shape()
        return latent_dim, positions

    def report(self) -> str:
        """What the network starts from, unless it starts from scratch."""
        return self._started

    def identity(self) -> Identity:
        """The identity with the flow's path, prediction, objective and time grid."""
        return replace(super().identity(), **asdict(self.info))

    def model(self) -> FlowModel:
        """The denoiser on its path."""
        return FlowModel(self.denoiser, self.path, self.prediction)

    def progress(self) -> float:
        """The fraction of the training that is done, a function of the step; 1 in validation, for comparable losses."""
        return min(self.global_step / self.trainer.max_steps, 1.0) if self.training else 1.0

    def on_fit_start(self) -> None:
        """Move frozen parts and teacher to the device; compute or open the latent cache."""
        super().on_fit_start()
        if self._teacher.value is not None:
            self._teacher.value.to(self.device)
        if self.latent_cache_dir is not None and self._cache is None:
            self._cache = LatentCache.open(self.latent_cache_dir, self.base, self.data)

    def latents(self, batch: Batch) -> Latents:
        """Latents of a batch: those of train rows from the cache if there is one."""
        if self._cache is not None and self.training:
            return self._cache.rows(batch["index"])
        with torch.no_grad():
            return self.base.encoder().encode(batch["ids"], batch["mask"])

    def batch_loss(self, batch: Batch, generator: torch.Generator) -> LossOutput:
        """The objective's loss on the batch's latents."""
        is_text = "ids" in batch
        # Validation runs in inference mode, whose tensors take no derivative; some objectives need one.
        recording = torch.is_grad_enabled()
        with torch.inference_mode(False), torch.set_grad_enabled(recording):
            return self.objective.forward(
                self.model(),
                self.latents(batch),
                tokens=tokens_of(batch) if is_text else None,
                readout=self.base.readout if is_text else None,
                generator=generator,
                teacher=None if self._teacher.value is None else self._teacher.value.flow(),
                progress=self.progress(),
            )


class ImageFlowModule(FlowModule):
    """:class:`FlowModule` on the latents of images: (c, K), channels and s * s positions, read row by row.

    There are no tokens: an objective with a term through the readout is refused.
    """

    stage_name: ClassVar[str] = "image_flow"
    data_class: ClassVar[type[StepDataModule]] = ImageDataModule

    def __init__(
        self,
        data: ImageDataModule,
        autoencoder: str,
        objective: Objective,
        denoiser: Callable[[int, int], RegressionDenoiser],
        path: PathName = "linear",
        prediction: PredictionType = "x1",
        teacher: str | None = None,
        initialise_from: str | None = None,
        optimizer: OptimizerSettings = DEFAULT_OPTIMIZER,
        seed: int = 0,
    ) -> None:
        if (weight := getattr(objective, "cross_entropy_weight", 0.0)) > 0:
            raise UserError(
                f"model.objective.cross_entropy_weight is {weight}, but images have no tokens and no readout: give 0"
            )
        super().__init__(
            data,  # type: ignore[arg-type]
            autoencoder,
            objective,
            denoiser,
            path,
            prediction,
            teacher,
            initialise_from,
            optimizer,
            seed=seed,
        )

    @classmethod
    def load(cls, path: str, data: Any, *, needs_flow: bool = False, allow: list[str] | None = None) -> SavedModel:
        """The frozen model at ``path``, of the same images: what its autoencoder did not see stays held out."""
        model = SavedModel.from_pretrained(path, allow=allow or (), kind="images")
        theirs, ours = (model.identity.source, model.identity.source_config), (data.images.name, data.images.config)
        if theirs != ours:
            flags = " ".join(f"--data.images.{name}={value}" for name, value in theirs[1].items())
            raise UserError(f"{path} was trained on other images: give --data.images={theirs[0]} {flags}")
        if needs_flow:
            model.require("denoiser", source=path)
        for part in model.parts().values():
            part.requires_grad_(False)
        return model

    @torch.no_grad()
    def latents(self, batch: Batch) -> Latents:
        """Latents (B, K, c) of the batch's images; every position is real."""
        z = to_positions(self.base.image_autoencoder().encode(batch["images"]))
        return Latents(z, torch.ones(z.shape[:2], dtype=torch.bool, device=z.device))
