"""Stage two: a flow on the latents."""

from collections.abc import Callable
from dataclasses import replace
from typing import ClassVar, Literal

import torch

from fewstep.bundle import PATHS, Identity
from fewstep.denoisers import CategoricalDenoiser, FlowModel, PredictionType, RegressionDenoiser
from fewstep.errors import UserError
from fewstep.objectives import FlowMatching
from fewstep.paths import Path
from fewstep.schedules import LogitNormalTime
from fewstep.training.data_module import TextDataModule
from fewstep.training.latent_cache import LatentCache
from fewstep.training.optimizer import DEFAULT_OPTIMIZER, OptimizerSettings
from fewstep.training.stage import Stage, load_base
from fewstep.training.token_counts import log_frequencies, token_counts
from fewstep.types import Latents, LossOutput, TokenBatch


class FlowModule(Stage):
    """Trains a denoiser on the frozen autoencoder's latents.

    ``autoencoder`` is a model folder or a checkpoint of stage one. ``denoiser`` is made from (D, K), or
    ``categorical_denoiser`` from (D, K, V, path), for latents that are a code of single tokens; give one of them.
    ``latent_cache_dir`` keeps the train split's latents on disk, so that they are computed once. Raises ``UserError``
    where parts and data do not fit.
    """

    trained: ClassVar[tuple[str, ...]] = ("denoiser",)
    stage_name: ClassVar[str] = "flow"

    def __init__(
        self,
        data: TextDataModule,
        autoencoder: str,
        objective: FlowMatching,
        denoiser: Callable[[int, int], RegressionDenoiser] | None = None,
        categorical_denoiser: Callable[[int, int, int, Path], CategoricalDenoiser] | None = None,
        path: Literal["linear", "variance_preserving"] = "linear",
        prediction: PredictionType = "x1",
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

    def identity(self) -> Identity:
        """The identity with path, prediction, objective and the grid that follows the time sampler."""
        sampler = self.objective.time_sampler
        return replace(
            super().identity(),
            path=self.path_name,
            prediction=self.prediction,
            objective=type(self.objective).__name__,
            grid_mean=sampler.mean if isinstance(sampler, LogitNormalTime) else None,
            grid_std=sampler.std if isinstance(sampler, LogitNormalTime) else None,
        )

    def model(self) -> FlowModel:
        """The denoiser on its path."""
        return FlowModel(self.denoiser, PATHS[self.path_name](), self.prediction)

    def on_fit_start(self) -> None:
        """Move the frozen parts, and compute or open the latents' cache."""
        super().on_fit_start()
        if self.latent_cache_dir is not None:
            self._cache = LatentCache.open(self.latent_cache_dir, self.base, self.data)

    def latents(self, tokens: TokenBatch, index: torch.Tensor) -> Latents:
        """Latents of a batch: from the cache where it holds the rows, else encoded."""
        assert self.base.autoencoder is not None
        if self._cache is not None and bool((index >= 0).all()):
            return self._cache.rows(index)
        with torch.no_grad():
            return self.base.autoencoder.encode(tokens.ids, tokens.mask)

    def compute_loss(self, tokens: TokenBatch, index: torch.Tensor, generator: torch.Generator) -> LossOutput:
        """The objective's loss on the batch's latents."""
        assert self.base.readout is not None
        return self.objective.forward(
            self.model(),
            self.latents(tokens, index),
            tokens=tokens,
            readout=self.base.readout,
            generator=generator,
        )
