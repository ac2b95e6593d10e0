"""Trained flows that a run learns from or starts from, and whether they fit it."""

from collections.abc import Sequence
from typing import Any, Protocol

from torch import nn

from fewstep.bundle import ModelBundle
from fewstep.denoisers import ESTIMATES, CategoricalDenoiser, PredictionType, RegressionDenoiser
from fewstep.errors import UserError
from fewstep.merging import check_same_autoencoder
from fewstep.objectives import Objective
from fewstep.schedules import LogitNormalTime
from fewstep.storage import load_strictly
from fewstep.training.data_module import TextDataModule
from fewstep.training.stage import load_base

Denoiser = RegressionDenoiser | CategoricalDenoiser


class OfAFlow(Protocol):
    """What an identity says of the flow in a model, of text or not."""

    @property
    def path(self) -> str:
        """Name of the path."""
        ...

    @property
    def prediction(self) -> str:
        """What the network predicts."""
        ...

    @property
    def estimate(self) -> str:
        """What its clean estimate is."""
        ...

    @property
    def trained_nfe(self) -> int | None:
        """The number of steps that it was trained for; None: any."""
        ...

    @property
    def grid_mean(self) -> float | None:
        """Of the sampler's grid; None: equal steps."""
        ...

    @property
    def grid_std(self) -> float | None:
        """Of the sampler's grid; None: equal steps."""
        ...


def flow_fields(objective: Objective, path: str, prediction: PredictionType) -> dict[str, Any]:
    """What an identity says of a flow, by field: path, prediction, objective, what it trains for, and the grid that
    follows its times."""
    sampler = objective.time_sampler
    mean, std = (sampler.mean, sampler.std) if isinstance(sampler, LogitNormalTime) else (None, None)
    return {
        "path": path,
        "prediction": prediction,
        "objective": type(objective).__name__,
        "trained_nfe": objective.trained_nfe,
        "estimate": objective.estimate.name,
        "grid_mean": mean,
        "grid_std": std,
    }


def load_flow(path: str, data: TextDataModule, base: ModelBundle, base_source: str) -> ModelBundle:
    """A model with a denoiser on the autoencoder of ``base``, without gradients.

    Raises ``UserError`` where there is none, or where its text, tokens or latents are not those of the run.
    """
    bundle = load_base(path, data, "autoencoder", "denoiser")
    assert base.autoencoder is not None and bundle.autoencoder is not None
    check_same_autoencoder(base.autoencoder, bundle.autoencoder, base_source, path)
    return bundle


def check_objective(objective: Objective, denoiser: nn.Module, teacher: str | None) -> None:
    """Raise ``UserError`` unless the objective can train this network, and is given a teacher exactly if it has one."""
    name, config = type(objective).__name__, getattr(denoiser, "config", {})
    wanted, found = objective.estimate.two_times, bool(config.get("two_times", False))
    if wanted != found:
        raise UserError(
            f"model.denoiser.two_times is {str(found).lower()}, but {name} trains a network of "
            f"{'two times' if wanted else 'one time'}: give {str(wanted).lower()}"
        )
    if not objective.feeds_back and config.get("self_conditioning", False):
        raise UserError(
            f"model.denoiser.self_conditioning is true, but {name} never feeds an estimate back: give false"
        )
    if objective.needs_teacher and teacher is None:
        raise UserError(f"model.teacher is missing: {name} learns from a trained flow; give its model folder")
    if not objective.needs_teacher and teacher is not None:
        raise UserError(f"model.teacher is {teacher}, but {name} learns from data alone: leave it out")


def check_teacher(teacher: OfAFlow, student: OfAFlow, objective: Objective, source: str) -> None:
    """Raise ``UserError`` unless the objective can learn from the teacher's estimates on the student's path.

    A teacher must have a velocity. One that was trained for a number of steps can only be asked for these, on the same
    grid: see ``teacher_nfe`` of :class:`~fewstep.objectives.Objective`.
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


def start_from(denoiser: Denoiser, trained: nn.Module, source: str) -> tuple[str, ...]:
    """Take over the weights of ``trained``, a network of the same architecture; returns the names of new tensors.

    Strict: only those of the second time may be new, where ``trained`` has one time. They start so that the network
    does not look at where a jump ends, and is the flow that it came from. Raises ``UserError`` for whatever differs.
    """
    if type(trained) is not type(denoiser):
        raise UserError(f"{source}: its denoiser is a {type(trained).__name__}, this run's {type(denoiser).__name__}")
    ours: dict[str, Any] = dict(denoiser.config)
    theirs: dict[str, Any] = dict(trained.config)
    grows = ours["two_times"] and not theirs["two_times"]
    names = [name for name in ours if ours[name] != theirs[name] and not (grows and name == "two_times")]
    if names:
        told = ", ".join(f"{name} {theirs[name]} against {ours[name]}" for name in names)
        raise UserError(f"{source}: another architecture than model.denoiser, {told}: give the same")
    weights = dict(trained.state_dict())
    new: Sequence[str] = ()
    if grows:
        denoiser.body.ignore_second_time()
        own = denoiser.state_dict()
        new = tuple(name for name in own if name.startswith("body.distance."))
        weights |= {name: own[name] for name in new}
    load_strictly(denoiser, weights, source)
    return tuple(new)


def check_start(trained: OfAFlow, student: OfAFlow, source: str) -> None:
    """Raise ``UserError`` where the weights would mean another thing: on another path, or predicting another."""
    for what in ("path", "prediction"):
        theirs, ours = getattr(trained, what), getattr(student, what)
        if theirs != ours:
            raise UserError(f"{source}: its {what} is {theirs}, this run's {ours}: give model.{what}={theirs}")
