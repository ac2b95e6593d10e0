"""Stiffness of a flow: how fast its velocity turns with the state. After arXiv:2606.30705, this project's definition.

Legend: B examples, T states of one trajectory.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from fewstep.diagnostics.curves import estimate_series
from fewstep.diagnostics.derivatives import directional, pullback
from fewstep.diagnostics.geometry import norms, random_directions, unit_rows
from fewstep.diagnostics.results import NUM_RESAMPLES, DiagnosticRow, Estimate, Picture, mean_estimate
from fewstep.metrics import bootstrap_interval

TOLERANCE = 1e-4
"""Relative growth of every example's singular value in one iteration, below which the iteration ends."""


@dataclass(frozen=True)
class Stiffness:
    """Largest singular value of d v(x, t) / d x, mean over examples at each of ``times``; ``peak`` over them.

    ``last_growth`` is the largest relative growth of any example's value in its last iteration: the iteration only ever
    grows, so a value well above 1e-4 says that more of them would give more. This project's definition, after
    arXiv:2606.30705.
    """

    name: str
    times: tuple[float, ...]
    values: tuple[Estimate, ...]
    peak: Estimate
    peak_time: float | None
    last_growth: float

    def rows(self) -> tuple[DiagnosticRow, ...]:
        """The peak."""
        where = "undetermined" if self.peak_time is None else f"at t = {self.peak_time:.3g}"
        return (DiagnosticRow(f"{self.name}_peak", self.peak, "1 / time", where),)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, fit for JSON."""
        return asdict(self)

    def picture(self) -> Picture:
        """Stiffness over time."""
        line = estimate_series("largest singular value", self.times, self.values)
        return Picture("Stiffness of the velocity", "time t", "largest singular value of dv/dx", (line,))


def stiffness(
    velocity: Callable[[Tensor, Tensor], Tensor],
    states: Sequence[tuple[float, Tensor]],
    *,
    num_iterations: int = 20,
    generator: torch.Generator,
    name: str = "stiffness",
) -> Stiffness:
    """Largest singular value of the Jacobian of ``velocity(x, t)`` in x at the ``states`` (t, x_t), x_t (B, ...).

    ``velocity`` takes x (B, ...) and t (B,) float32, answers like x, and row b of its answer depends on row b of x
    only. Power iteration on J'J from a random direction, all examples at once, at most ``num_iterations`` times and
    until no example's value grows by more than 1e-4; its value approaches the largest singular value from below. Runs
    in the dtype of x_t, which should be float32 at least. An iteration costs one forward-mode and one reverse-mode
    derivative, about 4 evaluations. A velocity that ignores x has stiffness 0; one that is not finite gives an
    undetermined value. Intervals resample examples. This project's definition, after arXiv:2606.30705.

    Raises ValueError for no states, states of different shapes, and fewer than 1 iteration.
    """
    if not states or num_iterations < 1 or any(x_t.shape != states[0][1].shape for _, x_t in states):
        raise ValueError(
            f"states of shapes {[tuple(x_t.shape) for _, x_t in states]}, num_iterations {num_iterations}: "
            "expected at least 1 iteration and at least 1 state, all of one shape."
        )
    found = [_largest_singular_values(velocity, float(t), x_t, num_iterations, generator) for t, x_t in states]
    times = tuple(float(t) for t, _ in states)
    table = torch.stack([values for values, _ in found], 1)
    estimates = tuple(
        mean_estimate(column[:, None], torch.ones(len(column), 1), generator) for column in table.unbind(1)
    )
    known = bool(table.isfinite().all())
    means = table.mean(0)
    return Stiffness(
        name=name,
        times=times,
        values=estimates,
        peak=_peak(table, generator) if known else Estimate(None, None, len(table)),
        peak_time=times[int(means.argmax())] if known else None,
        last_growth=max(growth for _, growth in found),
    )


def _peak(table: Tensor, generator: torch.Generator) -> Estimate:
    """The highest of the means over the examples of ``table`` (B, T)."""

    def peak(rows: Tensor) -> Tensor:
        return rows.mean(0).max()

    return Estimate(float(peak(table)), bootstrap_interval(table, peak, NUM_RESAMPLES, generator), len(table))


def _largest_singular_values(
    velocity: Callable[[Tensor, Tensor], Tensor],
    time: float,
    x_t: Tensor,
    num_iterations: int,
    generator: torch.Generator,
) -> tuple[Tensor, float]:
    """(B,) float64 on the CPU, and the largest relative growth in the last iteration."""
    with torch.inference_mode(False):
        t = torch.full((len(x_t),), time, dtype=torch.float32, device=x_t.device)

    def at_time(x: Tensor) -> Tensor:
        return velocity(x, t)

    u = random_directions(x_t, generator)
    values, growth = torch.zeros(len(x_t), dtype=torch.float64), 0.0
    for _ in range(num_iterations):
        _, image = directional(at_time, x_t, u)
        back = pullback(at_time, x_t, unit_rows(image))
        u = unit_rows(back)
        before = values
        values = torch.where(norms(image).isfinite(), norms(back), torch.nan).cpu()
        growth = float(((values - before) / values.clamp(min=torch.finfo(torch.float64).tiny)).max())
        if growth < TOLERANCE:
            break
    return values, growth if growth == growth else 0.0
