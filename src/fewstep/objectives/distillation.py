"""Distillation of a trained flow, the teacher, by following it over a few steps. B batch, K positions, D dimension."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import torch
from torch import Tensor

from fewstep.denoisers import FlowModel
from fewstep.objectives.base import Batch, Objective, Regression, from_x1, match_flow
from fewstep.schedules import UniformTime, grid_of


@dataclass(kw_only=True, eq=False)
class ProgressiveDistillation(Objective):
    """Progressive distillation (arXiv:2202.00512, algorithm 2), on any path: a student step for several teacher steps.

    Each of the student's ``num_steps`` N steps ends where ``teacher_steps`` m Euler steps of the teacher end (2 in the
    paper), on the grid of m N steps that a sampler uses by default after ``time_sampler``. With x_s the teacher's end,

        F_target = (sigma_t x_s - sigma_s x_t) / (alpha_s sigma_t - alpha_t sigma_s).

    A round is a run of its own. Each may start and learn from the model of the round before with m = 2, or all may have
    the first flow as teacher, with m = 2, 4, 8 and so on.
    """

    needs_teacher: ClassVar[bool] = True
    num_steps: int
    teacher_steps: int = 2

    def __post_init__(self) -> None:
        if self.num_steps < 1 or self.teacher_steps < 2:
            raise ValueError(
                f"num_steps {self.num_steps}, teacher_steps {self.teacher_steps}: "
                "expected num_steps >= 1 and teacher_steps >= 2"
            )
        self._grid = grid_of(self.time_sampler).times(self.teacher_nfe)
        self._starts = UniformTime(stratified=True)

    @property
    def trained_nfe(self) -> int:
        return self.num_steps

    @property
    def teacher_nfe(self) -> int:
        return self.num_steps * self.teacher_steps

    @property
    def passes_per_step(self) -> float:
        return 3.0 + self.teacher_steps

    def regressions(self, model: FlowModel, batch: Batch, teacher: FlowModel | None) -> Iterator[Regression]:
        assert teacher is not None  # see needs_teacher
        times = self.times(batch)
        t, s = times[0], times[-1]
        x_t = model.path.sample(batch.x_1, batch.x_0, t)
        x_s = follow(teacher, x_t, times, batch.mask)
        target = from_x1(model, x1_from_jump(model, x_s, x_t, t, s), x_t, t)
        yield Regression(model.predict(x_t, t, mask=batch.mask).value, target, batch.mask)

    def times(self, batch: Batch) -> list[Tensor]:
        """The m + 1 times of each example's step, (B,) each."""
        shares = self._starts.sample(len(batch.x_1), batch.generator)
        step = (shares * self.num_steps).long().clamp(max=self.num_steps - 1)
        places = step[:, None] * self.teacher_steps + torch.arange(self.teacher_steps + 1)
        return list(self._grid[places].to(batch.x_1.device).unbind(1))


@dataclass(kw_only=True, eq=False)
class Reflow(Objective):
    """Reflow (arXiv:2209.03003, eq. 1 and algorithm 1), on any path: flow matching on the teacher's own pairs.

    x_1 is not drawn from the data but is where the teacher takes the noise x_0 in ``num_steps`` Heun steps, on the grid
    that a sampler uses by default after ``time_sampler``. Noise keeps its sample, and trajectories cross less, so that
    fewer steps follow them. Pairs are computed in each training step: a batch of B has B / ``times_per_pair`` of them,
    each at that many times. Of the data only the masks of the first examples are used.
    """

    needs_teacher: ClassVar[bool] = True
    num_steps: int = 8
    times_per_pair: int = 4

    def __post_init__(self) -> None:
        if min(self.num_steps, self.times_per_pair) < 1:
            raise ValueError(f"num_steps {self.num_steps}, times_per_pair {self.times_per_pair}: expected both >= 1")
        self._grid = grid_of(self.time_sampler).times(self.num_steps).tolist()

    @property
    def passes_per_step(self) -> float:
        return 3.0 + (2 * self.num_steps - 1) / self.times_per_pair

    def regressions(self, model: FlowModel, batch: Batch, teacher: FlowModel | None) -> Iterator[Regression]:
        assert teacher is not None  # see needs_teacher
        size = len(batch.x_1)
        pairs = -(-size // self.times_per_pair)
        x_0, mask = batch.x_0[:pairs], batch.mask[:pairs]
        x_1 = follow(
            teacher.rows(slice(0, pairs)), x_0, [x_0.new_full((pairs,), t) for t in self._grid], mask, second_order=True
        )
        t = self.time_sampler.sample(size, batch.generator, x_1.device)
        pair = torch.arange(size, device=x_1.device) % pairs
        yield match_flow(model.rows(pair), x_1[pair], x_0[pair], t, mask[pair])


@torch.no_grad()
def follow(
    teacher: FlowModel, x_t: Tensor, times: Sequence[Tensor], mask: Tensor, *, second_order: bool = False
) -> Tensor:
    """Where ``teacher`` takes ``x_t`` (B, K, D) from ``times[0]`` to ``times[-1]``, (B,) each, without gradient.

    Euler steps, x_s = alpha_s x1_hat + sigma_s eps_hat (DDIM, arXiv:2010.02502, eq. 12), or with ``second_order`` Heun
    steps on all but the last, as :func:`fewstep.samplers.heun`: M steps cost M or 2 M - 1 passes.
    """
    path, held = teacher.path, mask[..., None]
    for k, (t, s) in enumerate(pairwise(times)):
        x_1 = teacher.denoise(x_t, t, mask=mask)
        eps = path.eps_from_x1(x_t, x_1, t)
        if second_order and k < len(times) - 2:
            x_s = path.sample(x_1, eps, s) * held
            x1_end = teacher.denoise(x_s, s, mask=mask)
            x_1, eps = (x_1 + x1_end) / 2, (eps + path.eps_from_x1(x_s, x1_end, s)) / 2
            x_t = (x_t + path.sample(x_1, eps, s) - path.sample(x_1, eps, t)) * held
        else:
            x_t = path.sample(x_1, eps, s) * held
    return x_t


def x1_from_jump(model: FlowModel, x_s: Tensor, x_t: Tensor, t: Tensor, s: Tensor) -> Tensor:
    """The clean estimate (B, K, D) along which the jump from ``t`` to ``s`` > ``t`` ends at ``x_s``.

    X(t, s) = (sigma_s / sigma_t) x_t + (alpha_s - alpha_t sigma_s / sigma_t) x1_hat, solved for x1_hat.
    """
    (alpha_t, sigma_t), (alpha_s, sigma_s) = (model.path.alpha_sigma(time, x_t) for time in (t, s))
    return (sigma_t * x_s - sigma_s * x_t) / (alpha_s * sigma_t - alpha_t * sigma_s)
