"""Progressive distillation: one step of the student for several of the teacher. B batch, K positions, D dimension."""

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from fewstep.denoisers import FlowModel
from fewstep.objectives.few_step import PLAIN, Draw, FewStepObjective, Regression, prediction_from_x1, x1_from_jump
from fewstep.objectives.flow_objective import require_one_time
from fewstep.objectives.following import follow
from fewstep.objectives.grids import grid_of
from fewstep.objectives.weights import AdaptiveWeight
from fewstep.schedules import TimeSampler, UniformTime


class ProgressiveDistillation(FewStepObjective):
    """arXiv:2202.00512, algorithm 2, on any path: each of the student's ``num_steps`` N steps ends where
    ``teacher_steps`` m Euler steps of the teacher end (2 in the paper), on the grid of m N steps:

        F_target = (sigma_t x_s - sigma_s x_t) / (alpha_s sigma_t - alpha_t sigma_s),

    x_s being the teacher's end from x_t, a noised example at one of the N times at which the student starts a step.
    The grid is the sampler's for ``time_sampler`` (:func:`fewstep.objectives.grids.grid_of`), so the trained steps are
    the ones that are taken; times are not drawn from it otherwise.

    A round is a run of its own. Each may start from the model of the round before and have it as its teacher, with
    m = 2, or all may have the first flow, with m = 2, 4, 8 and so on. A teacher that is itself trained for a number of
    steps must be trained for ``teacher_nfe``. The terms through the readout aim at the tokens found at the target, for
    what the teacher makes of x_t is not the text that x_t was made of.

    Raises ``ValueError`` for fewer than 1 step and fewer than 2 of the teacher, and for a network of two times.
    """

    needs_teacher: ClassVar[bool] = True

    def __init__(
        self,
        time_sampler: TimeSampler,
        *,
        num_steps: int,
        teacher_steps: int = 2,
        weight: AdaptiveWeight = PLAIN,
        cross_entropy_weight: float = 0.0,
        fisher_weight: float = 0.0,
    ) -> None:
        super().__init__(weight=weight, cross_entropy_weight=cross_entropy_weight, fisher_weight=fisher_weight)
        if num_steps < 1 or teacher_steps < 2:
            raise ValueError(
                f"num_steps {num_steps}, teacher_steps {teacher_steps}: "
                "expected num_steps >= 1 and teacher_steps >= 2 for each of them"
            )
        self.time_sampler = time_sampler
        self.num_steps = num_steps
        self.teacher_steps = teacher_steps
        self._grid = grid_of(time_sampler).times(self.teacher_nfe)
        self._starts = UniformTime(stratified=True)

    @property
    def trained_nfe(self) -> int:
        """N: the student knows no other steps."""
        return self.num_steps

    @property
    def teacher_nfe(self) -> int:
        """m N: the number of steps in which the teacher would go the whole way."""
        return self.num_steps * self.teacher_steps

    @property
    def passes_per_step(self) -> float:
        """Three of the student, one for each step of the teacher, three of the terminal term."""
        return 3.0 + self.teacher_steps + self.terminal_passes

    def regressions(self, model: FlowModel, draw: Draw, teacher: FlowModel | None) -> Sequence[Regression]:
        """One part: the whole batch, its starts spread evenly over the N steps."""
        require_one_time(self, model)
        assert teacher is not None  # what `needs_teacher` promises
        times = self._times(draw)
        t, s = times[0], times[-1]
        x_t = model.path.sample(draw.x_1, draw.x_0, t)
        x_s = follow(teacher, x_t, times, draw.mask)
        aim = prediction_from_x1(model, x1_from_jump(model, x_s, x_t, t, s), x_t, t)
        value = model.predict(x_t, t, mask=draw.mask).value
        return [Regression(slice(0, len(t)), x_t, t, value, aim.detach(), from_data=False)]

    def _times(self, draw: Draw) -> list[Tensor]:
        """The m + 1 times of each example's step, (B,) each."""
        shares = self._starts.sample(len(draw.x_1), draw.generator)
        step = (shares * self.num_steps).long().clamp(max=self.num_steps - 1)
        places = step[:, None] * self.teacher_steps + torch.arange(self.teacher_steps + 1)
        return list(self._grid[places].to(draw.x_1.device).unbind(1))
