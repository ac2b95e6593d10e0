"""Reflow: a flow trained on the pairs of noise and data that a flow makes. B batch, K positions, D dimension."""

from collections.abc import Sequence
from typing import ClassVar

import torch

from fewstep.denoisers import FlowModel
from fewstep.objectives.few_step import PLAIN, Draw, FewStepObjective, Regression
from fewstep.objectives.flow_objective import require_one_time
from fewstep.objectives.following import follow
from fewstep.objectives.grids import grid_of
from fewstep.objectives.weights import AdaptiveWeight
from fewstep.schedules import TimeSampler


class Reflow(FewStepObjective):
    """arXiv:2209.03003, eq. 1 and algorithm 1, on any path: flow matching where x_1 is not drawn beside the noise x_0
    but is the teacher's own end from it. What a flow makes of its noise stays the same, and its trajectories cross
    less, so that fewer steps follow them.

    The teacher takes ``num_steps`` steps on the sampler's grid of ``time_sampler``, Heun's with ``second_order``, else
    Euler's: 2 K - 1 or K passes. Pairs are made anew in each training step and not kept. To make this affordable a
    batch of B has B / ``times_per_pair`` pairs, each noised at that many times (this project's layout). Of the data
    only the masks of the first of a batch are used; ``per_example`` of the loss then counts noised pairs. The terms
    through the readout aim at the tokens found at the teacher's x_1.

    Raises ``ValueError`` for fewer than 1 step or 1 time a pair, and for a network of two times.
    """

    needs_teacher: ClassVar[bool] = True

    def __init__(
        self,
        time_sampler: TimeSampler,
        *,
        num_steps: int = 8,
        second_order: bool = True,
        times_per_pair: int = 4,
        weight: AdaptiveWeight = PLAIN,
        cross_entropy_weight: float = 0.0,
        fisher_weight: float = 0.0,
    ) -> None:
        super().__init__(weight=weight, cross_entropy_weight=cross_entropy_weight, fisher_weight=fisher_weight)
        if min(num_steps, times_per_pair) < 1:
            raise ValueError(f"num_steps {num_steps}, times_per_pair {times_per_pair}: expected both >= 1")
        self.time_sampler = time_sampler
        self.num_steps = num_steps
        self.second_order = second_order
        self.times_per_pair = times_per_pair
        self._grid = grid_of(time_sampler).times(num_steps).tolist()

    @property
    def passes_per_step(self) -> float:
        """Three of the student, and the teacher's share; exact where ``times_per_pair`` divides the batch."""
        passes = 2 * self.num_steps - 1 if self.second_order else self.num_steps
        return 3.0 + passes / self.times_per_pair + self.terminal_passes

    def regressions(self, model: FlowModel, draw: Draw, teacher: FlowModel | None) -> Sequence[Regression]:
        """One part a time of the pairs, all from one pass of the student."""
        require_one_time(self, model)
        assert teacher is not None  # what `needs_teacher` promises
        size = len(draw.x_1)
        pairs = -(-size // self.times_per_pair)
        parts = [slice(0, min(pairs, size - start)) for start in range(0, size, pairs)]
        x_0, mask = draw.x_0[:pairs], draw.mask[:pairs]
        x_1 = follow(
            teacher, x_0, [x_0.new_full((pairs,), t) for t in self._grid], mask, second_order=self.second_order
        )
        x_0, x_1, mask = (torch.cat([every[rows] for rows in parts]) for every in (x_0, x_1, mask))
        t = self.time_sampler.sample(size, draw.generator, x_1.device)
        x_t = model.path.sample(x_1, x_0, t)
        value = model.predict(x_t, t, mask=mask).value
        target = x_1 if model.prediction == "x1" else model.path.velocity(x_1, x_0, t)
        split = zip(parts, *(every.split(pairs) for every in (x_t, t, value, target)), strict=True)
        return [Regression(rows, at, time, said, aim, from_data=False) for rows, at, time, said, aim in split]
