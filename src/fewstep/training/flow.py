"""Stage two: a flow on the latents of text, and on those of images."""

from collections.abc import Callable
from itertools import islice
from typing import ClassVar

import torch

from fewstep.autoencoders import to_positions
from fewstep.denoisers import FlowModel, PredictionType, ReadsCodebook, RegressionDenoiser
from fewstep.errors import UserError
from fewstep.model import Identity, SavedModel, check_same_autoencoder
from fewstep.objectives import Objective
from fewstep.paths import PATHS, PathName
from fewstep.training.data_modules import Batch, ImageDataModule, StepDataModule
from fewstep.training.latent_cache import LatentCache
from fewstep.training.module import Shared, TrainingModule, tokens_of
from fewstep.training.optimizer import DEFAULT_OPTIMIZER, OptimizerSettings
from fewstep.training.teacher import check_objective, check_start, check_teacher, identity_of_flow, start_from
from fewstep.types import Latents, LossOutput

MAX_COUNTED_BLOCKS = 50_000  # enough for a prior over tokens


class FlowModule(TrainingModule):
    """Trains a denoiser on the frozen autoencoder's latents, by flow matching or a few-step objective.

    ``autoencoder`` is a model folder or checkpoint of stage one; ``denoiser`` is built from (D, K). ``teacher`` is a
    model with the trained flow that some objectives learn from. ``initialise_from`` is one with a flow of the same
    architecture, path and prediction to start from; if the network here has a second time, its tensors are new and
    start without effect (:func:`.start_from`). ``latent_cache_dir`` keeps the latents of the train split on disk.
    ``allow`` names packages beside fewstep whose classes these models may have. Raises ``UserError`` if parts and data
    do not fit.
    """

    trained: ClassVar[tuple[str, ...]] = ("denoiser",)
    stage_name: ClassVar[str] = "flow"

    def __init__(
        self,
        data: StepDataModule,
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
        parts = ("autoencoder", "readout") if data.kind == "text" else ("autoencoder",)
        super().__init__(data, optimizer, seed, data.load_model(autoencoder, *parts, allow=allow or ()))
        if latent_cache_dir is not None and data.kind != "text":
            raise UserError("model.latent_cache_dir is for text only: leave it out")
        self.flow_identity = identity_of_flow(super().identity(), objective, path, prediction)
        self.objective = objective
        self.latent_cache_dir = latent_cache_dir
        self._cache: LatentCache | None = None
        positions, latent_dim = self.base.latent_shape()
        self.denoiser = denoiser(latent_dim, positions)
        if isinstance(self.denoiser, ReadsCodebook):
            self._give_codebook(self.denoiser)
        check_objective(objective, self.denoiser, teacher, has_readout=data.kind == "text")

        def load_flow(source: str) -> SavedModel:
            model = data.load_model(source, "autoencoder", "denoiser", allow=allow or ())
            check_same_autoencoder(self.base.autoencoder, model.autoencoder, autoencoder, source)
            return model

        self._teacher: Shared[SavedModel | None] = Shared(None)
        if teacher is not None:
            model = load_flow(teacher)
            check_teacher(model.identity, self.flow_identity, objective, teacher)
            self._teacher = Shared(model)
        self._started = ""
        if initialise_from is not None:
            start = load_flow(initialise_from)
            check_start(start.identity, self.flow_identity, initialise_from)
            new = start_from(self.denoiser, start.parts()["denoiser"], initialise_from)
            tensors = f"new tensors, without effect at first: {', '.join(new)}" if new else "no tensor is new"
            self._started = f"starts from {initialise_from}; {tensors}"

    def _give_codebook(self, denoiser: ReadsCodebook) -> None:
        """Give the denoiser the autoencoder's code and the tokens' log-frequencies in the train split."""
        path, prediction = self.flow_identity.path, self.flow_identity.prediction
        own_path = getattr(denoiser, "config", {}).get("path", path)
        if prediction != "x1" or own_path != path:
            raise UserError(f"prediction is {prediction}, path {path}: this denoiser predicts x1 on path {own_path}")
        if not hasattr(self.base.autoencoder, "codebook"):
            raise UserError("this autoencoder has no codebook, which model.denoiser needs: give a RegressionDenoiser")
        codebook = self.base.autoencoder.codebook()
        counts = torch.ones(len(codebook), dtype=torch.float64)  # of each token one more, so that none is impossible
        for row in islice(self.data.corpus.train, MAX_COUNTED_BLOCKS):
            counts += torch.as_tensor(row["input_ids"][: row["length"]]).bincount(minlength=len(codebook))
        denoiser.set_codebook(codebook, (counts / counts.sum()).log().float())

    def report(self) -> str:
        """What the network starts from, unless it starts from scratch."""
        return self._started

    def identity(self) -> Identity:
        """The identity with the flow's path, prediction, objective and time grid."""
        return self.flow_identity

    def model(self) -> FlowModel:
        """The denoiser on its path."""
        return FlowModel(self.denoiser, PATHS[self.flow_identity.path](), self.flow_identity.prediction)

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
        teacher = self._teacher.value
        # Validation runs in inference mode, whose tensors take no derivative; some objectives need one.
        recording = torch.is_grad_enabled()
        with torch.inference_mode(False), torch.set_grad_enabled(recording):
            return self.objective.forward(
                self.model(),
                self.latents(batch),
                tokens=tokens_of(batch) if "ids" in batch else None,
                readout=self.base.readout,
                generator=generator,
                teacher=None if teacher is None else teacher.flow(),
                progress=self.progress(),
            )


class ImageFlowModule(FlowModule):
    """:class:`FlowModule` on the latents of images, read row by row. There are no tokens and no readout."""

    stage_name: ClassVar[str] = "image_flow"
    data_class: ClassVar[type[StepDataModule]] = ImageDataModule

    @torch.no_grad()
    def latents(self, batch: Batch) -> Latents:
        """Latents (B, K, c) of the batch's images; every position is real."""
        z = to_positions(self.base.image_autoencoder().encode(batch["images"]))
        return Latents(z, torch.ones(z.shape[:2], dtype=torch.bool, device=z.device))
