"""Stage two: a flow on frozen latents, and what it may learn from and start from."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any, ClassVar

import torch
from lightning import Trainer
from torch import nn

from fewstep.denoisers import (
    ESTIMATES,
    ConditionalFlow,
    FlowModel,
    Known,
    PredictionType,
    ReadsCodebook,
    RegressionDenoiser,
)
from fewstep.errors import UserError
from fewstep.model import Identity, SavedModel, check_same_autoencoder
from fewstep.nn import transformer_blocks
from fewstep.objectives import DistributionMatching, KnownPositions, Objective
from fewstep.paths import PATHS, PathName
from fewstep.schedules import LogitNormalTime
from fewstep.shapes import token_mask
from fewstep.storage import load_strictly
from fewstep.training.auxiliary import Auxiliary
from fewstep.training.data_modules import Batch, StepDataModule
from fewstep.training.module import DEFAULT_OPTIMIZER, OptimizerSettings, Shared, TrainingModule, tokens_of
from fewstep.training.run_folder import weights_digest
from fewstep.types import Latents, LossOutput

MAX_COUNTED_BLOCKS = 50_000  # enough for a prior over tokens
GROWN = {"two_times": "body.distance.", "reads_known": "known"}
"""Options that a network may have beyond the one that it starts from, and the prefix of their tensors."""


class FlowModule(TrainingModule):
    """Trains a denoiser on the frozen autoencoder's latents, by flow matching or a few-step objective.

    ``autoencoder`` is a model folder or checkpoint of stage one; ``denoiser`` is built from (D, K). ``teacher`` is a
    model with the trained flow that some objectives learn from. ``initialise_from`` is one with a flow of the same
    architecture, path and prediction to start from (:func:`.start_from`). ``known`` says which positions of an example
    are known, so that the model continues and fills in text; None: it writes whole blocks. ``allow`` names packages
    beside fewstep whose classes these models may have. Raises ``UserError`` if parts and data do not fit.

    Distribution matching grows its auxiliary network from that flow too; a step is then one of the denoiser and the
    updates of the auxiliary network on the same batch.
    """

    trained: ClassVar[tuple[str, ...]] = ("denoiser",)
    stage_name: ClassVar[str] = "flow"
    builds_on: ClassVar[tuple[str, ...]] = ("autoencoder", "readout")

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
        known: KnownPositions | None = None,
        optimizer: OptimizerSettings = DEFAULT_OPTIMIZER,
        allow: list[str] | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(data, optimizer, seed, data.load_model(autoencoder, *self.builds_on, allow=allow or ()))
        self.objective, self.path, self.prediction, self.known = objective, path, prediction, known
        positions, latent_dim = self.base.latent_shape()
        self.denoiser = denoiser(latent_dim, positions)
        has_tokens = "readout" in self.builds_on
        if known is not None:
            if not has_tokens:
                raise UserError("model.known is for text: these latents have no tokens to know; leave it out")
            self.denoiser = type(self.denoiser)(**{**self.denoiser.config, "reads_known": True})
        if isinstance(self.denoiser, ReadsCodebook):
            self._give_codebook(self.denoiser)
        check_objective(objective, self.denoiser, teacher, has_readout=has_tokens)

        def load_flow(source: str, option: str) -> SavedModel:
            model = data.load_model(source, "autoencoder", "denoiser", allow=allow or ())
            self.fingerprints[option] = weights_digest(model.parts())
            check_same_autoencoder(self.base.autoencoder, model.autoencoder, autoencoder, source)
            return model

        self._teacher = Shared(None)
        if teacher is not None:
            model = load_flow(teacher, "model.teacher")
            check_teacher(model.identity, self.identity(), objective, teacher)
            if known is not None and not model.flow().reads_known:
                raise UserError(
                    f"{teacher}: this teacher was trained without known positions, and this run has model.known: train "
                    "the teacher with model.known, or leave it out here"
                )
            self._teacher = Shared(model)
        if initialise_from is not None:
            start = load_flow(initialise_from, "model.initialise_from")
            for name, ours in (("path", path), ("prediction", prediction)):  # else the weights mean something else
                theirs = getattr(start.identity, name)
                if theirs != ours:
                    raise UserError(
                        f"{initialise_from}: its {name} is {theirs}, this run's {ours}: give model.{name}={theirs}"
                    )
            start_from(self.denoiser, start.parts()["denoiser"], initialise_from)
        self._auxiliary = Shared(None)
        if isinstance(objective, DistributionMatching):
            if initialise_from is None:
                raise UserError(
                    "model.initialise_from is missing: DistributionMatching starts from the flow it matches"
                )
            network = type(self.denoiser)(**{**self.denoiser.config, "two_times": True})
            start_from(network, self.denoiser, initialise_from)
            settings = replace(optimizer, learning_rate=objective.auxiliary_learning_rate)
            self._auxiliary = Shared(Auxiliary(network, settings))

    def _give_codebook(self, denoiser: ReadsCodebook) -> None:
        """Give the denoiser the autoencoder's code and the tokens' log-frequencies in the train split."""
        own_path = getattr(denoiser, "config", {}).get("path", self.path)
        if (self.prediction, self.path) != ("x1", own_path):
            raise UserError(
                f"prediction is {self.prediction}, path {self.path}: this denoiser predicts x1 on path {own_path}"
            )
        if not hasattr(self.base.autoencoder, "codebook"):
            raise UserError("this autoencoder has no codebook, which model.denoiser needs: give a RegressionDenoiser")
        codebook = self.base.autoencoder.codebook()
        counts = torch.ones(len(codebook), dtype=torch.float64)  # of each token one more, so that none is impossible
        for row in islice(self.data.corpus.train, MAX_COUNTED_BLOCKS):
            counts += torch.as_tensor(row["input_ids"]).bincount(minlength=len(codebook))
        denoiser.set_codebook(codebook, (counts / counts.sum()).log().float())

    def blocks(self) -> Sequence[nn.Module]:
        """With those of the auxiliary network and its teacher, which make most passes of distribution matching."""
        auxiliary, teacher = self._auxiliary.value, self._teacher.value
        others = [] if auxiliary is None else [auxiliary.network, teacher.flow()]
        return [*super().blocks(), *(block for network in others for block in transformer_blocks(network))]

    def identity(self) -> Identity:
        """With the flow's path, prediction and objective, and a time grid that follows the objective's times."""
        own = super().identity() if self.known is None else self.data.describe(super().identity())
        objective, sampler = self.objective, self.objective.time_sampler
        mean, std = (sampler.mean, sampler.std) if isinstance(sampler, LogitNormalTime) else (None, None)
        return replace(
            own,
            path=self.path,
            prediction=self.prediction,
            objective=objective.saved_name,
            trained_nfe=objective.trained_nfe,
            estimate=objective.estimate.name,
            grid_mean=mean,
            grid_std=std,
            known_dropped=0.0 if self.known is None else self.known.dropped,
        )

    def model(self) -> FlowModel:
        """The denoiser on its path."""
        return FlowModel(self.denoiser, PATHS[self.path](), self.prediction)

    def progress(self) -> float:
        """The fraction of the training that is done, a function of the step; 1 in validation, for comparable losses."""
        return min(self.global_step / self.trainer.max_steps, 1.0) if self.training else 1.0

    def on_fit_start(self) -> None:
        """Move frozen parts and teacher to the device."""
        super().on_fit_start()
        if self._teacher.value is not None:
            self._teacher.value.to(self.device)
        if self._auxiliary.value is not None:
            self._auxiliary.value.start(self.trainer, self.device)

    def latents(self, batch: Batch) -> Latents:
        """Latents of a batch."""
        with torch.no_grad():
            return self.base.encoder().encode(batch["ids"], batch["mask"])

    def batch_loss(self, batch: Batch, generator: torch.Generator) -> LossOutput:
        """The objective's loss on the batch's latents."""
        teacher, auxiliary = self._teacher.value, self._auxiliary.value
        # Validation runs in inference mode, whose tensors take no derivative; some objectives need one.
        recording = torch.is_grad_enabled()
        with torch.inference_mode(False), torch.set_grad_enabled(recording):
            latents, given = self._given(batch, generator)
            if auxiliary is not None:
                return self._match_distributions(auxiliary, latents, given, generator)
            return self.objective.forward(
                given(self.model()),
                latents,
                tokens=tokens_of(batch) if "ids" in batch else None,
                readout=self.base.readout,
                generator=generator,
                teacher=None if teacher is None else given(teacher.flow()),
                progress=self.progress(),
            )

    def _given(self, batch: Batch, generator: torch.Generator) -> tuple[Latents, Callable[[FlowModel], FlowModel]]:
        """Latents whose mask is true where the loss counts, and what gives a flow the known positions of the batch.

        The known part is encoded with the rest hidden.
        """
        latents = self.latents(batch)
        if self.known is None:
            return latents, lambda flow: flow
        prompts = batch["known"].unflatten(1, (latents.mask.shape[1], -1)).all(-1) if "known" in batch else None
        written, known, rows = self.known.split(latents.mask, generator, prompts)
        seen = token_mask(known, batch["ids"].shape[1]) & batch["mask"]
        z, rows = torch.zeros_like(latents.z), rows.to(latents.z.device)
        with torch.no_grad():
            z[rows] = self.base.encoder().encode(batch["ids"][rows], seen[rows]).z.to(z.dtype)
        part = Known(z, known)
        return Latents(latents.z, written), lambda flow: ConditionalFlow(flow, part)

    def _match_distributions(
        self,
        auxiliary: Auxiliary,
        latents: Latents,
        given: Callable[[FlowModel], FlowModel],
        generator: torch.Generator,
    ) -> LossOutput:
        """The student's loss; in training also the auxiliary network's updates, on the same samples of the student.

        The student's loss comes first: on samples that it has seen the auxiliary estimate leans towards them, and the
        student would move to the teacher's mean.
        """
        objective, teacher, student = self.objective, self._teacher.value, self.model()
        assert isinstance(objective, DistributionMatching)
        second = given(FlowModel(auxiliary.network, student.path, student.prediction))
        generated = objective.generate(given(student), latents, generator)
        output = objective.student_loss(generated, second, given(teacher.flow()), generator)
        if not self.training:
            return output
        losses, norms = [], []
        for _ in range(objective.auxiliary_updates):
            loss = objective.auxiliary_loss(generated, second, generator)
            losses.append(loss.detach())
            norms.append(auxiliary.update(loss, self.trainer))
        auxiliary.end_step()
        loss, norm = torch.stack(losses).mean(), torch.stack(norms).mean()
        terms = {**output.terms, "auxiliary_loss": loss, "auxiliary_grad_norm": norm}
        # One that is not finite marks the step: the student skips it too, and it is counted.
        return replace(output, loss=output.loss + 0 * norm, terms=terms)

    def check_trainer(self, trainer: Trainer) -> None:
        """Raise ``UserError`` for settings with which the auxiliary network cannot be trained."""
        if self._auxiliary.value is None:
            return
        if trainer.accumulate_grad_batches > 1:
            raise UserError(
                f"trainer.accumulate_grad_batches is {trainer.accumulate_grad_batches}: distribution matching updates "
                "its auxiliary network in every batch; give 1, and a larger data.batch_size"
            )
        if trainer.precision == "16-mixed":
            raise UserError(
                "trainer.precision is 16-mixed: the auxiliary network's gradients are not scaled; give bf16-mixed"
            )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the auxiliary network, if there is one, with its optimizer and schedule."""
        super().on_save_checkpoint(checkpoint)
        if self._auxiliary.value is not None:
            checkpoint["auxiliary"] = self._auxiliary.value.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the auxiliary network too."""
        super().on_load_checkpoint(checkpoint)
        if self._auxiliary.value is not None:
            self._auxiliary.value.load_state_dict(checkpoint["auxiliary"], "the checkpoint")


class DistributionMatchingModule(FlowModule):
    """The stage after the flow: :class:`fewstep.objectives.DistributionMatching` of the flow in ``autoencoder``.

    ``autoencoder`` is a model folder or checkpoint with autoencoder, readout and flow, which is the teacher and what
    the student starts from; network, path and prediction are its own. The rest as in :class:`FlowModule`; ``known``
    for a flow that was trained with it.
    """

    def __init__(
        self,
        data: StepDataModule,
        autoencoder: str,
        objective: DistributionMatching,
        known: KnownPositions | None = None,
        optimizer: OptimizerSettings = DEFAULT_OPTIMIZER,
        allow: list[str] | None = None,
        seed: int = 0,
    ) -> None:
        model = data.load_model(autoencoder, *self.builds_on, "denoiser", allow=allow or ())
        trained, identity = model.parts()["denoiser"], model.identity
        super().__init__(
            data,
            autoencoder,
            objective,
            lambda latent_dim, positions: type(trained)(**trained.config),
            identity.path,
            identity.prediction,
            teacher=autoencoder,
            initialise_from=autoencoder,
            known=known,
            optimizer=optimizer,
            allow=allow,
            seed=seed,
        )


def check_objective(objective: Objective, denoiser: nn.Module, teacher: str | None, *, has_readout: bool) -> None:
    """Raise ``UserError`` unless the objective can train this network, and gets a teacher exactly if it needs one."""
    name, config = type(objective).__name__, getattr(denoiser, "config", {})
    expected = objective.estimate.two_times
    if expected != config.get("two_times", False):
        raise UserError(
            f"model.denoiser.two_times is {str(not expected).lower()}, but {name} trains a network of "
            f"{'two times' if expected else 'one time'}: give {str(expected).lower()}"
        )
    if not objective.feeds_back and config.get("self_conditioning", False):
        raise UserError(
            f"model.denoiser.self_conditioning is true, but {name} never feeds an estimate back: give false"
        )
    if objective.needs_teacher and teacher is None:
        raise UserError(f"model.teacher is missing: {name} learns from a trained flow; give its model folder")
    if not objective.needs_teacher and teacher is not None:
        raise UserError(f"model.teacher is {teacher}, but {name} learns from data alone: leave it out")
    weight = getattr(objective, "cross_entropy_weight", 0.0)
    if weight > 0 and not has_readout:
        raise UserError(
            f"model.objective.cross_entropy_weight is {weight}, but these data have no tokens and no readout: give 0"
        )


def check_teacher(teacher: Identity, student: Identity, objective: Objective, source: str) -> None:
    """Raise ``UserError`` unless the objective can learn from the teacher's estimates on the student's path.

    One trained for a number of steps can be asked for those only, on the same grid: the objective's ``teacher_nfe``.
    """
    name = type(objective).__name__
    if teacher.path != student.path:
        raise UserError(f"{source}: the teacher's path is {teacher.path}, this run's {student.path}: give the same")
    if not ESTIMATES[teacher.estimate].has_velocity:
        raise UserError(
            f"{source}: the teacher's estimate is of kind {teacher.estimate}, but {name} learns from a flow"
        )
    if teacher.trained_nfe is None:
        return
    expected = objective.teacher_nfe
    if expected != teacher.trained_nfe:
        asked = "flow for any number of steps" if expected is None else f"flow, or a model trained for {expected} steps"
        raise UserError(
            f"{source}: the teacher was trained for {teacher.trained_nfe} steps, but {name} asks it for others: "
            f"give a {asked}"
        )
    if (teacher.grid_mean, teacher.grid_std) != (student.grid_mean, student.grid_std):
        raise UserError(f"{source}: the teacher's steps lie at other times: give its time_sampler")


def start_from(denoiser: RegressionDenoiser, trained: nn.Module, source: str) -> tuple[str, ...]:
    """Copy the weights of ``trained``, a network of the same architecture; returns the names of new tensors.

    Strict: only those of the second time and of known positions may be new, if ``trained`` has none. They start without
    effect, so that the network is the flow that it came from. Raises ``UserError`` for any other difference.
    """
    if type(trained) is not type(denoiser):
        raise UserError(f"{source}: its denoiser is a {type(trained).__name__}, this run's {type(denoiser).__name__}")
    ours: dict[str, Any] = dict(denoiser.config)
    theirs: dict[str, Any] = dict(trained.config)
    grown = {option: prefix for option, prefix in GROWN.items() if ours[option] and not theirs[option]}
    names = [name for name in ours if ours[name] != theirs[name] and name not in grown]
    if names:
        listed = ", ".join(f"{name} {theirs[name]} against {ours[name]}" for name in names)
        raise UserError(f"{source}: another architecture than model.denoiser, {listed}: give the same")
    if "two_times" in grown:
        denoiser.body.ignore_second_time()
    prefixes = tuple(grown.values())
    new = {name: value for name, value in denoiser.state_dict().items() if name.startswith(prefixes)}
    load_strictly(denoiser, trained.state_dict() | new, source)
    return tuple(new)
