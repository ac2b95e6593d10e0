"""Shortcut models: each step learns to be two of half its size. B batch, K positions, D latent dimension, N steps."""

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from fewstep.denoisers import EstimateKind, FlowModel
from fewstep.objectives.few_step import PLAIN, Draw, FewStepObjective, Regression
from fewstep.objectives.flow_map import instant_regression
from fewstep.objectives.flow_objective import require_two_times
from fewstep.objectives.grids import grid_of
from fewstep.objectives.semigroup import jump_as_two
from fewstep.objectives.weights import AdaptiveWeight
from fewstep.schedules import TimeSampler, UniformTime


class ShortcutModel(FewStepObjective):
    """arXiv:2410.12557, section 3, on any path: flow matching at s = t on ``instant_share`` of a batch, and on the rest
    X(t, s) = X(r, s) o X(t, r) on dyadic grids, the two short jumps without gradient.

    The grid is the sampler's for ``time_sampler`` (:func:`fewstep.objectives.grids.grid_of`), cut in N = 1, 2, 4 and so
    on up to ``finest_steps`` / 2 steps; a step of N is [t, s], and its halves, of 2 N steps, meet at r. So the jumps
    that are trained are those that a sampler of N steps makes. N is drawn with equal probability, then the step. The
    halves of the finest steps, of which ``finest_steps`` fill the way, are Euler steps of the flow, told s = t. The
    paper has three quarters of flow matching and 128 finest steps.

    The network must have two times: ``ValueError`` otherwise, and for ``finest_steps`` that are no power of 2 or below
    2, and an ``instant_share`` outside [0, 1].
    """

    estimate: ClassVar[EstimateKind] = "flow_map"

    def __init__(
        self,
        time_sampler: TimeSampler,
        *,
        finest_steps: int = 128,
        instant_share: float = 0.75,
        weight: AdaptiveWeight = PLAIN,
        cross_entropy_weight: float = 0.0,
        fisher_weight: float = 0.0,
    ) -> None:
        super().__init__(weight=weight, cross_entropy_weight=cross_entropy_weight, fisher_weight=fisher_weight)
        if finest_steps < 2 or finest_steps & (finest_steps - 1):
            raise ValueError(f"finest_steps is {finest_steps}: expected a power of 2, at least 2")
        if not 0 <= instant_share <= 1:
            raise ValueError(f"instant_share is {instant_share}: expected a share of the batch in [0, 1]")
        self.time_sampler = time_sampler
        self.finest_steps = finest_steps
        self.instant_share = instant_share
        self._grid = grid_of(time_sampler).times(finest_steps)
        self._spread = UniformTime(stratified=True)

    @property
    def passes_per_step(self) -> float:
        """Three of a pass with its gradient, one for each half of a step, and those of the terminal term."""
        return 3 + 2 * (1 - self.instant_share) + self.terminal_passes

    def regressions(self, model: FlowModel, draw: Draw, teacher: FlowModel | None) -> Sequence[Regression]:
        """The examples of flow matching first, then the steps."""
        require_two_times(self, model)
        count, device = len(draw.x_1), draw.x_1.device
        first = round(self.instant_share * count)
        parts = []
        if first > 0:
            t = self.time_sampler.sample(first, draw.generator, device)
            parts.append(instant_regression(model, draw, slice(0, first), t))
        if first < count:
            rows = slice(first, count)
            part = draw.rows(rows)
            t, r, s, finest = self.steps(count - first, draw.generator, device)
            x_t = model.path.sample(part.x_1, part.x_0, t)
            told = torch.where(finest, t, r), torch.where(finest, r, s)
            parts.append(jump_as_two(model, rows, x_t, (t, r, s), told, part.mask))
        return parts

    def steps(
        self, batch_size: int, generator: torch.Generator, device: torch.device | str
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Start, middle and end of ``batch_size`` steps, and whether their halves are the finest: (B,) each."""
        depth = self.finest_steps.bit_length() - 1
        size, place = (self._spread.sample(batch_size, generator).double() for _ in range(2))
        number = 2 ** (size * depth).long()
        half = self.finest_steps // (2 * number)
        start = (place * number).long() * 2 * half
        t, r, s = (self._grid[start + shift].to(device) for shift in (0, half, 2 * half))
        return t, r, s, (half == 1).to(device)
