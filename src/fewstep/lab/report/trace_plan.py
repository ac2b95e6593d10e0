"""Which trajectories are traced: those that the model was trained for."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from fewstep.errors import UserError
from fewstep.model import SavedModel
from fewstep.samplers import FlowSampler, default_sampling, incompatibility

Way = Literal["deterministic", "reinjection", "commitment"]
"""How a sample is made and read: the first two by the parallel readout, the third by the commitment head."""


@dataclass(frozen=True)
class PlannedPath:
    """``num_steps`` Euler steps with re-injection of that strength, read as ``way`` says."""

    way: Way
    num_steps: int
    reinjection: float


def planned_paths(bundle: SavedModel, steps: Sequence[int], reinjection: float) -> tuple[PlannedPath, ...]:
    """Every way with every number of ``steps``, in rising order, where the model can go it.

    A model that was trained for a number of steps has only that one. ``reinjection`` is the strength of the way of
    that name; the head reads the latents that the model makes where no re-injection is asked for
    (:func:`fewstep.samplers.default_sampling`). Without a commitment head its way is left out.
    Raises ``UserError`` for no or twice the same number of steps, one below 1, a strength outside (0, 1], and missing
    parts.
    """
    bundle.require("autoencoder", "denoiser", "readout")
    if not steps or min(steps) < 1 or len(set(steps)) < len(steps):
        raise UserError(f"steps are {list(steps)}: expected different whole numbers of at least 1")
    if not 0 < reinjection <= 1:
        raise UserError(f"re-injection strength is {reinjection}: expected a number above 0 and at most 1")
    identity = bundle.identity
    counts = sorted(steps) if identity.trained_nfe is None else [identity.trained_nfe]
    strengths: dict[Way, list[float]] = {
        "deterministic": [0.0] * len(counts),
        "reinjection": [float(reinjection)] * len(counts),
    }
    if bundle.head is not None:
        strengths["commitment"] = [default_sampling(identity, count).reinjection for count in counts]
    plans = [PlannedPath(way, *pair) for way, column in strengths.items() for pair in zip(counts, column, strict=True)]
    return tuple(plan for plan in plans if _fits(bundle, plan))


def _fits(bundle: SavedModel, plan: PlannedPath) -> bool:
    grid = bundle.identity.default_grid()
    sampler = FlowSampler(bundle.flow().path, grid=grid, reinjection=plan.reinjection)
    return incompatibility(bundle.identity, sampler, plan.num_steps) is None
