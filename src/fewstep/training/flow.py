"""Stage two: a flow on the latents."""

from collections.abc import Callable
from dataclasses import replace
from typing import ClassVar, Literal

import torch

from fewstep.bundle import Identity, ModelBundle
from fewstep.denoisers import CategoricalDenoiser, FlowModel, PredictionType, RegressionDenoiser
from fewstep.errors import UserError
from fewstep.objectives import Objective
from fewstep.paths import PATHS, Path
from fewstep.training.data_module import TextDataModule
from fewstep.training.latent_cache import LatentCache
from fewstep.training.optimizer import DEFAULT_OPTIMIZER, OptimizerSettings
from fewstep.training.shared import Shared
from fewstep.training.stage import Stage, load_base
from fewstep.training.teacher import check_objective, check_start, check_teacher, flow_fields, load_flow, start_from
from fewstep.training.token_counts import log_frequencies, token_counts
from fewstep.types import Latents, LossOutput, TokenBatch


class FlowModule(Stage):
    """Trains a denoiser on the frozen autoencoder's latents, by flow matching or by an objective for few steps.

    ``autoencoder`` is a model folder or a checkpoint of stage one. ``denoiser`` is made from (D, K), or
    ``categorical_denoiser`` from (D, K, V, path), for latents that are a code of single tokens; give one of them.
    ``teacher`` is a model folder or checkpoint with the trained flow that some objectives learn from, which is never
    changed. ``initialise_from`` is one with a flow of the same architecture, path and prediction to start from; where
    the network here has a second time, its tensors are new and start without effect (:func:`start_from`).
    ``latent_cache_dir`` keeps the train split's latents on disk, so that they are computed once. Raises ``UserError``
    where parts and data do not fit.
    """

    trained: ClassVar[tuple[str, ...]] = ("denoiser",)
    stage_name: ClassVar[str] = "flow"

    def __init__(
        self,
        data: TextDataModule,
        autoencoder: str,
        objective: Objective,
        denoiser: Callable[[int, int], RegressionDenoiser] | None = None,
        categorical_denoiser: Callable[[int, int, int, Path], CategoricalDenoiser] | None = None,
        path: Literal["linear", "variance_preserving"] = "linear",
        prediction: PredictionType = "x1",
        teacher: str | None = None,
        initialise_from: str | None = None,
        optimizer: OptimizerSettings = DEFAULT_OPTIMIZER,
        latent_cache_dir: str | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(data, optimizer, seed, load_base(autoencoder, data, "autoencoder", "readout"))
        self.path_name = path
        self.prediction: PredictionType = prediction
        self.objective = objective
        self.latent_cache_dir = latent_cache_dir
        self._cache: LatentCache | None = None
        assert self.base.autoencoder is not None
        positions = self.base.autoencoder.num_latents(data.block_size)
        latent_dim = self.base.autoencoder.latent_dim
        if (denoiser is None) == (categorical_denoiser is None):
            raise UserError("give exactly one of model.denoiser and model.categorical_denoiser")
        self.denoiser: RegressionDenoiser | CategoricalDenoiser
        if denoiser is not None:
            self.denoiser = denoiser(latent_dim, positions)
        elif categorical_denoiser is not None:
            if prediction != "x1":
                raise UserError(f"prediction is {prediction!r}, but a categorical denoiser predicts x1 only")
            codebook = self.base.autoencoder.codebook()
            self.denoiser = categorical_denoiser(latent_dim, positions, len(codebook), PATHS[path]())
            self.denoiser.set_codebook(codebook, log_frequencies(token_counts(data, len(codebook))))
        check_objective(objective, self.denoiser, teacher)
        self._teacher: Shared[ModelBundle | None] = Shared(None)
        if teacher is not None:
            bundle = load_flow(teacher, data, self.base, autoencoder)
            check_teacher(bundle.identity, self.identity(), objective, teacher)
            self._teacher = Shared(bundle)
        self._started = "" if initialise_from is None else self._start_from(initialise_from, autoencoder)

    def _start_from(self, source: str, base_source: str) -> str:
        """Take over a trained flow's weights; returns what there is to say of it."""
        bundle = load_flow(source, self.data, self.base, base_source)
        check_start(bundle.identity, self.identity(), source)
        assert bundle.denoiser is not None
        new = start_from(self.denoiser, bundle.denoiser, source)
        told = f"new tensors, without effect at first: {', '.join(new)}" if new else "no tensor is new"
        return f"starts from {source}; {told}"

    def report(self) -> str:
        """What the network starts from, where it does not start anew."""
        return self._started

    def identity(self) -> Identity:
        """The identity with path, prediction, objective, what it trains for, and the grid that follows its times."""
        return replace(super().identity(), **flow_fields(self.objective, self.path_name, self.prediction))

    def model(self) -> FlowModel:
        """The denoiser on its path."""
        return FlowModel(self.denoiser, PATHS[self.path_name](), self.prediction)

    def teacher(self) -> FlowModel | None:
        """The trained flow that the objective learns from."""
        return None if self._teacher.value is None else self._teacher.value.flow()

    def progress(self) -> float:
        """The share of the training that is done, in [0, 1]. A pure function of the step, so that a resumed run goes
        on where it was. Held-out loss is always that of the end, so that its values can be compared."""
        return min(self.global_step / self.trainer.max_steps, 1.0) if self.training else 1.0

    def on_fit_start(self) -> None:
        """Move the frozen parts and the teacher, and compute or open the latents' cache."""
        super().on_fit_start()
        self._place_teacher()
        if self.latent_cache_dir is not None:
            self._cache = LatentCache.open(self.latent_cache_dir, self.base, self.data)

    def on_validation_start(self) -> None:
        """Move the frozen parts and the teacher, as at the start of a fit."""
        super().on_validation_start()
        self._place_teacher()

    on_test_start = on_validation_start

    def _place_teacher(self) -> None:
        if self._teacher.value is not None:
            self._teacher.value.to(self.device)

    def latents(self, tokens: TokenBatch, index: torch.Tensor | None) -> Latents:
        """Latents of a batch: from the cache where there is one and the rows have a number in it, else encoded."""
        assert self.base.autoencoder is not None
        if self._cache is not None and index is not None:
            return self._cache.rows(index)
        with torch.no_grad():
            return self.base.autoencoder.encode(tokens.ids, tokens.mask)

    def compute_loss(self, tokens: TokenBatch, index: torch.Tensor | None, generator: torch.Generator) -> LossOutput:
        """The objective's loss on the batch's latents."""
        assert self.base.readout is not None
        # Validation runs in inference mode, whose tensors no derivative takes; some objectives are made of one.
        recording = torch.is_grad_enabled()
        with torch.inference_mode(False), torch.set_grad_enabled(recording):
            return self.objective.forward(
                self.model(),
                self.latents(tokens, index),
                tokens=tokens,
                readout=self.base.readout,
                generator=generator,
                teacher=self.teacher(),
                progress=self.progress(),
            )
