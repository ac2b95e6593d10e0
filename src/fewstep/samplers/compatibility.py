"""Which samplers fit a trained model, and which one it was trained for."""

from typing import Any, NamedTuple

from fewstep.denoisers import ESTIMATES
from fewstep.errors import UserError
from fewstep.samplers.sampler import FlowSampler, euler

TrainedFlow = Any
"""A :class:`fewstep.model.Identity`, from above: ``objective``, ``estimate`` and ``trained_nfe`` are read here."""


class DefaultSampling(NamedTuple):
    """Euler steps that fit a model: how many, and the re-injection strength."""

    num_steps: int
    reinjection: float


def default_sampling(trained: TrainedFlow, num_steps: int) -> DefaultSampling:
    """What fits the model and is closest to ``num_steps`` deterministic Euler steps.

    A model trained for a number of steps takes that number; one that keeps no noise renews it after each step.
    """
    steps = num_steps if trained.trained_nfe is None else trained.trained_nfe
    return DefaultSampling(steps, 0.0 if ESTIMATES[trained.estimate].keeps_noise or steps == 1 else 1.0)


def check_compatible(trained: TrainedFlow, sampler: FlowSampler, num_steps: int) -> None:
    """Raise ``UserError`` with what :func:`incompatibility` says, if anything."""
    if (reason := incompatibility(trained, sampler, num_steps)) is not None:
        raise UserError(reason)


def incompatibility(trained: TrainedFlow, sampler: FlowSampler, num_steps: int) -> str | None:
    """Why the model was not trained for this sampler, and what to use instead; None where it fits.

    A model with ``trained_nfe`` has learned that many jumps: Euler with exactly that number of steps. Otherwise the
    kind of its estimate decides (:class:`~fewstep.denoisers.EstimateKind`): a flow map and an endpoint model do not
    know a velocity, which solvers of higher order ask for; the estimate of an endpoint model does not lead to the
    states between either, so all noise must be new after every step but the last. A posterior mean fits any sampler.
    Raises ``ValueError`` for a grid or rule that does not fit ``num_steps``.
    """
    _, noise = sampler.plan(num_steps)
    solver, name = getattr(sampler.solver, "__name__", repr(sampler.solver)), trained.objective or "unnamed"
    is_euler, nfe = sampler.solver is euler, trained.trained_nfe
    if nfe is not None and not (is_euler and num_steps == nfe):
        return (
            f"solver {solver} with {num_steps} steps does not fit this model: its objective ({name}) trained it for "
            f"euler with {nfe} steps; use those"
        )
    kind = ESTIMATES[trained.estimate]
    renews_all = num_steps == 1 or (not noise.by_position and bool((noise.kept[:-1] == 0).all()))
    if kind.keeps_noise and not kind.has_velocity and not is_euler:
        return (
            f"solver {solver} does not fit this model: its objective ({name}) trained it to jump, not to follow a "
            "velocity; use euler, with any number of steps and any re-injection"
        )
    if not kind.keeps_noise and not (is_euler and renews_all):
        return (
            f"solver {solver} with {num_steps} steps and this re-injection does not fit this model: its objective "
            f"({name}) trained it to predict the end of a trajectory, not its states; use euler with re-injection "
            "strength 1, or with 1 step"
        )
    return None


def check_numbers(num_samples: int, num_steps: int, batch_size: int) -> None:
    """Raise ``UserError`` for a number below 1."""
    for name, value in (("num_samples", num_samples), ("num_steps", num_steps), ("batch_size", batch_size)):
        if value < 1:
            raise UserError(f"{name} is {value}: expected a whole number of at least 1")
