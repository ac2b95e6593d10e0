"""Trained flows that a run learns from or starts from, and whether they fit it."""

from dataclasses import replace
from typing import Any

from torch import nn

from fewstep.denoisers import ESTIMATES, PredictionType, RegressionDenoiser
from fewstep.errors import UserError
from fewstep.model import Identity
from fewstep.objectives import Objective
from fewstep.paths import PathName
from fewstep.schedules import LogitNormalTime
from fewstep.storage import load_strictly


def identity_of_flow(model: Identity, objective: Objective, path: PathName, prediction: PredictionType) -> Identity:
    """The identity ``model`` with the flow that a run trains; the time grid follows the objective's times."""
    sampler = objective.time_sampler
    mean, std = (sampler.mean, sampler.std) if isinstance(sampler, LogitNormalTime) else (None, None)
    return replace(
        model,
        path=path,
        prediction=prediction,
        objective=type(objective).__name__,
        trained_nfe=objective.trained_nfe,
        estimate=objective.estimate.name,
        grid_mean=mean,
        grid_std=std,
    )


def check_objective(objective: Objective, denoiser: nn.Module, teacher: str | None, *, has_readout: bool) -> None:
    """Raise ``UserError`` unless the objective can train this network, and gets a teacher exactly if it needs one."""
    name, config = type(objective).__name__, getattr(denoiser, "config", {})
    expected, given = objective.estimate.two_times, bool(config.get("two_times", False))
    if expected != given:
        raise UserError(
            f"model.denoiser.two_times is {str(given).lower()}, but {name} trains a network of "
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
            f"model.objective.cross_entropy_weight is {weight}, but images have no tokens and no readout: give 0"
        )


def check_teacher(teacher: Identity, student: Identity, objective: Objective, source: str) -> None:
    """Raise ``UserError`` unless the objective can learn from the teacher's estimates on the student's path.

    A teacher has a velocity. One trained for a number of steps can be asked for those only, on the same grid:
    ``teacher_nfe`` of :class:`~fewstep.objectives.Objective`.
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


def check_start(trained: Identity, student: Identity, source: str) -> None:
    """Raise ``UserError`` if the weights would mean something else: another path or another prediction."""
    for name in ("path", "prediction"):
        theirs, ours = getattr(trained, name), getattr(student, name)
        if theirs != ours:
            raise UserError(f"{source}: its {name} is {theirs}, this run's {ours}: give model.{name}={theirs}")


def start_from(denoiser: RegressionDenoiser, trained: nn.Module, source: str) -> tuple[str, ...]:
    """Copy the weights of ``trained``, a network of the same architecture; returns the names of new tensors.

    Strict: only those of the second time may be new, if ``trained`` has one time. They start so that the network
    ignores the end of a jump and is the flow that it came from. Raises ``UserError`` for any difference.
    """
    if type(trained) is not type(denoiser):
        raise UserError(f"{source}: its denoiser is a {type(trained).__name__}, this run's {type(denoiser).__name__}")
    ours: dict[str, Any] = dict(denoiser.config)
    theirs: dict[str, Any] = dict(trained.config)
    grows = ours["two_times"] and not theirs["two_times"]
    names = [name for name in ours if ours[name] != theirs[name] and not (grows and name == "two_times")]
    if names:
        listed = ", ".join(f"{name} {theirs[name]} against {ours[name]}" for name in names)
        raise UserError(f"{source}: another architecture than model.denoiser, {listed}: give the same")
    weights, new = dict(trained.state_dict()), []
    if grows:
        denoiser.body.ignore_second_time()
        own = denoiser.state_dict()
        new = [name for name in own if name.startswith("body.distance.")]
        weights |= {name: own[name] for name in new}
    load_strictly(denoiser, weights, source)
    return tuple(new)
