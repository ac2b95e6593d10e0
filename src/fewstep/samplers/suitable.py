"""Which samplers a trained model can be followed by, and which one it was trained for."""

from dataclasses import dataclass
from typing import Protocol

from fewstep.errors import UserError
from fewstep.samplers.euler import EulerSolver
from fewstep.samplers.reinjection import TimedPlan
from fewstep.samplers.sampler import FlowSampler


class Trained(Protocol):
    """What the identity of a model says of its training."""

    @property
    def objective(self) -> str:
        """The objective's name, empty where none is known."""
        ...

    @property
    def estimate(self) -> str:
        """What the clean estimate is: "posterior_mean", "endpoint" or "flow_map"."""
        ...

    @property
    def trained_nfe(self) -> int | None:
        """The number of evaluations that the model was trained for; None: any."""
        ...


@dataclass(frozen=True)
class OwnSteps:
    """Euler steps that a model can be followed by: how many, and the re-injection strength."""

    num_steps: int
    reinjection: float


def own_steps(trained: Trained, num_steps: int) -> OwnSteps:
    """What comes nearest to ``num_steps`` deterministic Euler steps and fits the model (this project's definition).

    A model that was trained for a number of steps takes that number; an endpoint model throws its noise away after
    each step.
    """
    steps = num_steps if trained.trained_nfe is None else trained.trained_nfe
    return OwnSteps(steps, 1.0 if trained.estimate == "endpoint" and steps > 1 else 0.0)


def check_suits(trained: Trained, sampler: FlowSampler, num_steps: int) -> None:
    """Raise ``UserError`` with what :func:`misfit` says, if anything."""
    if (complaint := misfit(trained, sampler, num_steps)) is not None:
        raise UserError(complaint)


def misfit(trained: Trained, sampler: FlowSampler, num_steps: int) -> str | None:
    """Why a model was not trained for this sampler, and what would work; None where it fits.

    The rules are this project's. A model with a ``trained_nfe`` learned that many jumps and nothing between: it takes
    Euler's solver, which evaluates once a step, and exactly that number of steps. A flow map says where a jump ends and
    an endpoint model where the trajectory does; neither says how the state moves, which is what a solver of higher
    order asks. The estimate of an endpoint model does not lead to the states between either: all noise is new after
    each of its steps but the last, where several are made. Any sampler fits a posterior mean.

    Raises ``ValueError`` for strengths that do not fit ``num_steps``.
    """
    solver, name = type(sampler.solver).__name__, trained.objective or "unnamed"
    euler, nfe = isinstance(sampler.solver, EulerSolver), trained.trained_nfe
    if nfe is not None and not (euler and num_steps == nfe):
        return (
            f"sampler {solver} with {num_steps} steps does not fit this model: its objective ({name}) trained it for "
            f"EulerSolver with {nfe} steps; use those"
        )
    if trained.estimate == "flow_map" and not euler:
        return (
            f"sampler {solver} does not fit this model: its objective ({name}) trained it to jump, not to follow a "
            "velocity; use EulerSolver, with any number of steps and any re-injection"
        )
    if trained.estimate == "endpoint" and not (euler and _all_noise_is_new(sampler, num_steps)):
        return (
            f"sampler {solver} with {num_steps} steps and this re-injection does not fit this model: its objective "
            f"({name}) trained it to tell the end of a trajectory, not the way; use EulerSolver with re-injection "
            "strength 1, or with 1 step"
        )
    return None


def _all_noise_is_new(sampler: FlowSampler, num_steps: int) -> bool:
    """Whether nothing of the old noise is kept at the end of any step but the last."""
    plan = sampler.reinjection.plan(sampler.path, sampler.grid.times(num_steps).double())
    return num_steps == 1 or (isinstance(plan, TimedPlan) and all(one.kept == 0 for one in plan.steps[:-1]))


def check_numbers(num_samples: int, num_steps: int, batch_size: int) -> None:
    """Raise ``UserError`` for a number below 1."""
    for name, value in (("num_samples", num_samples), ("num_steps", num_steps), ("batch_size", batch_size)):
        if value < 1:
            raise UserError(f"{name} is {value}: expected a whole number of at least 1")
