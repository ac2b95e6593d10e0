"""How far trajectories are from straight, so from being followed in one step. After the S(Z) of arXiv:2209.03003.

B examples, T states of a trajectory.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from fewstep.diagnostics.curves import estimate_series
from fewstep.diagnostics.results import DiagnosticRow, Estimate, Picture, ratio_estimate
from fewstep.paths import Path


@dataclass(frozen=True)
class Curvature:
    """Squared distance of the velocity from that of one jump: ``total`` over a trajectory, ``values`` a unit of time.

    Both are shares of the squared velocity of the jump, so without a unit; 0 is straight. ``times`` are the middles of
    the steps, and the values' integral over time is the total.
    """

    name: str
    times: tuple[float, ...]
    values: tuple[Estimate, ...]
    total: Estimate

    def rows(self) -> tuple[DiagnosticRow, ...]:
        """The total."""
        return (DiagnosticRow(self.name, self.total, note=f"{len(self.times)} steps"),)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, fit for JSON."""
        return asdict(self)

    def picture(self) -> Picture:
        """Curvature over time."""
        line = estimate_series("curvature", self.times, self.values)
        return Picture("Curvature of the trajectories", "time t", "curvature a unit of time", (line,))


@torch.no_grad()
def curvature(
    states: Sequence[tuple[float, Tensor]],
    path: Path,
    *,
    mask: Tensor | None = None,
    generator: torch.Generator,
    name: str = "curvature",
) -> Curvature:
    """Curvature of trajectories given by ``states`` (t, x_t), in order from t = 0 to t = 1, x_t (B, ...).

    With x_0 and x_1 their ends, one jump goes along u_t = alpha'_t x_1 + sigma'_t x_0, and

        curvature = E int |dx_t/dt - u_t|^2 dt / E int |u_t|^2 dt.

    On the linear path the numerator is the straightness S(Z) of arXiv:2209.03003 (section 2). On another path it is 0
    where the pair (x_1, x_0) is the same all along, which is what one step of the sampler assumes (this project's
    definition). Velocities are means over the steps, so few steps give less than many. Only trajectories without
    re-injected noise have a curvature. ``mask`` (B, K) is true at positions that count. Intervals resample examples.

    Raises ``ValueError`` for fewer than 2 states, and times that do not rise from 0 to 1.
    """
    times = [float(t) for t, _ in states]
    if len(times) < 2 or times[0] != 0 or times[-1] != 1 or sorted(set(times)) != times:
        raise ValueError(f"states at times {times}: expected at least 2 that rise from 0 to 1.")
    x_0, x_1 = states[0][1].double(), states[-1][1].double()
    kept = torch.ones(x_0.shape[:2], device=x_0.device) if mask is None else mask.to(x_0.device)
    kept = kept.reshape(kept.shape + (1,) * (x_0.ndim - kept.ndim)).double()
    on_jump = [path.sample(x_1, x_0, x_0.new_full((len(x_0),), t)) for t in times]
    away, along = [], []
    for k in range(len(times) - 1):
        length = times[k + 1] - times[k]
        jumped = on_jump[k + 1] - on_jump[k]
        moved = states[k + 1][1].double() - states[k][1].double()
        away.append((kept * (moved - jumped).square()).flatten(1).sum(1) / length)
        along.append((kept * jumped.square()).flatten(1).sum(1) / length)
    energy = torch.stack(along, 1).sum(1)
    values = tuple(ratio_estimate(one / (times[k + 1] - times[k]), energy, generator) for k, one in enumerate(away))
    middles = tuple((times[k] + times[k + 1]) / 2 for k in range(len(times) - 1))
    return Curvature(name, middles, values, ratio_estimate(torch.stack(away, 1), energy, generator))
