"""Stiffness of a flow: how fast its velocity changes with the state (after arXiv:2606.30705).

Legend: B examples, T states of one trajectory.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from fewstep.diagnostics.decoding import directional, norms, pullback, random_directions, unit_rows
from fewstep.diagnostics.result import Axes, Estimate, Result, Row, estimate_series, mean_of_all, resampled

Velocity = Callable[[Tensor, Tensor], Tensor]
"""x (B, ...) and t (B,) float32 to v(x, t), shaped like x; row b depends on row b of x alone."""

TOLERANCE = 1e-4
"""The iteration ends when no example's singular value grows by more than this share."""


def stiffness(
    velocity: Velocity,
    states: Sequence[tuple[float, Tensor]],
    *,
    num_iterations: int = 20,
    generator: torch.Generator,
) -> Result:
    """Largest singular value of J = d v(x, t) / d x at the ``states`` (t, x_t), x_t (B, ...), mean over examples.

    Row ``stiffness_peak``: the highest of the means over time. Power iteration on J'J from a random direction, all
    examples at once, at most ``num_iterations`` times; it approaches the value from below, and the fact ``last_growth``
    (the largest relative growth in a last iteration) says how far it may still be. Runs in the dtype of x_t, float32 at
    least; an iteration costs one forward-mode and one reverse-mode derivative, about 4 evaluations. A velocity that is
    not finite gives an undetermined value.
    """
    columns = [_largest_singular_values(velocity, float(t), x_t, num_iterations, generator) for t, x_t in states]
    times = tuple(float(t) for t, _ in states)
    table = torch.stack([values for values, _ in columns], 1)
    estimates = [mean_of_all(column[:, None], generator) for column in table.unbind(1)]
    peak, peak_time = Estimate(None, None, len(table)), None
    if bool(table.isfinite().all()):
        highest, place = table.mean(0).max(0)
        peak = resampled(float(highest), table, lambda rows: rows.mean(0).max(), generator)
        peak_time = times[int(place)]
    where = "undetermined" if peak_time is None else f"at t = {peak_time:.3g}"
    return Result(
        "stiffness",
        (Row("stiffness_peak", peak, "1 / time", where),),
        {"stiffness": estimate_series("largest singular value", times, estimates)},
        Axes("Stiffness of the velocity", "time t", "largest singular value of dv/dx"),
        {"times": times, "peak_time": peak_time, "last_growth": max(growth for _, growth in columns)},
    )


def _largest_singular_values(
    velocity: Velocity, time: float, x_t: Tensor, num_iterations: int, generator: torch.Generator
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
        _, back = pullback(at_time, x_t, unit_rows(image))
        u = unit_rows(back)
        before = values
        values = torch.where(norms(image).isfinite(), norms(back), torch.nan).cpu()
        growth = float(((values - before) / values.clamp(min=torch.finfo(torch.float64).tiny)).max())
        if growth < TOLERANCE:
            break
    return values, growth if growth == growth else 0.0
