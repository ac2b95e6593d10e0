"""Laws of progressive distillation and reflow: what the student's optimum does, in steps of the sampler's grid."""

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from fewstep.denoisers import FlowModel, PredictionType
from fewstep.objectives import ProgressiveDistillation, Reflow
from fewstep.objectives.base import Batch, Regression
from fewstep.paths import Path
from fewstep.samplers import FlowSampler, euler, heun
from fewstep.schedules import LogitNormalTime, TimeSampler, UniformTime, grid_of
from fewstep.types import Latents
from tests.nn.builders import normal
from tests.objectives.toys import (
    COVARIANCE,
    MEAN,
    Answering,
    D,
    K,
    both_predictions,
    data,
    each_path,
    exact_flow,
    gradient,
    loss_of,
    seed,
)
from tests.toys import ExactModel, GaussianModel

each_sampler = pytest.mark.parametrize(
    "sampler", [UniformTime(), LogitNormalTime(0.3, 1.2)], ids=["uniform", "logit_normal"]
)


def ends(model: FlowModel, x_0: Tensor, num_steps: int, sampler: TimeSampler, *, second_order: bool = False) -> Tensor:
    """The sampler's own ends (B, K, D)."""
    loop = FlowSampler(model.path, solver=heun if second_order else euler, grid=grid_of(sampler))
    with torch.no_grad():
        return loop.sample(model, x_0, num_steps=num_steps, generator=seed(0)).x_1


def batch_of(count: int, lengths: list[int] | None = None) -> Batch:
    latents = data(count, seed(0), lengths)
    return Batch(latents.z, normal((count, K, D), seed(1)) * latents.mask[..., None], latents.mask, seed(2))


class Composed(ExactModel):
    """m Euler steps of ``exact`` as one: the mean of their estimates, weighed by the rise of alpha / sigma.

    Euler's step is x_s / sigma_s = x_t / sigma_t + (rho_s - rho_t) x1_hat with rho = alpha / sigma; a step to t = 1,
    where rho is infinite, leaves the last estimate alone.
    """

    def __init__(self, path: Path, exact: ExactModel, times: Tensor, teacher_steps: int) -> None:
        super().__init__(path)
        self.exact, self.grid, self.teacher_steps = exact, times, teacher_steps

    def denoise(self, x_t: Tensor, t: Tensor, *, mask: Tensor | None = None, self_cond: Tensor | None = None) -> Tensor:
        """(B, K, D), example by example; ``t`` must be a start of a step."""
        return torch.stack([self._alone(x[None], float(time))[0] for x, time in zip(x_t, t, strict=True)])

    def _alone(self, x: Tensor, start: float) -> Tensor:
        k = self.grid.tolist().index(start)
        total, x_t = torch.zeros_like(x), x
        for i in range(k, k + self.teacher_steps):
            t, s = self.grid[i : i + 1], self.grid[i + 1 : i + 2]
            (alpha_t, sigma_t), (alpha_s, sigma_s) = (self.path.alpha_sigma(time, x) for time in (t, s))
            estimate = self.exact.denoise(x_t, t)
            if float(s) == 1:
                return estimate
            rise = alpha_s / sigma_s - alpha_t / sigma_t
            total = total + rise * estimate
            x_t = sigma_s * (x_t / sigma_t + rise * estimate)
        (first_alpha, first_sigma), (alpha, sigma) = (
            self.path.alpha_sigma(self.grid[i : i + 1], x) for i in (k, k + self.teacher_steps)
        )
        return total / (alpha / sigma - first_alpha / first_sigma)


def composed_flow(
    path: Path, sampler: TimeSampler, num_steps: int, teacher_steps: int, prediction: PredictionType
) -> FlowModel:
    times = grid_of(sampler).times(num_steps * teacher_steps)
    exact = Composed(path, GaussianModel(path, MEAN, COVARIANCE), times, teacher_steps)
    return FlowModel(Answering(exact, prediction), path, prediction)


def assert_is_the_optimum(
    objective: ProgressiveDistillation | Reflow, student: FlowModel, teacher: FlowModel, latents: Latents
) -> None:
    """Loss and gradient are 0, and a tenth away the loss is a hundredth."""
    loss = loss_of(objective, student, latents, seed(5), teacher).loss
    assert loss < 1e-18 and gradient(loss, student).abs().max() < 1e-8
    with torch.no_grad():
        student.network.shift += 0.1
    away = loss_of(objective, student, latents, seed(5), teacher).loss
    torch.testing.assert_close(away.item(), 0.01, rtol=1e-5, atol=0)
    with torch.no_grad():
        student.network.shift.zero_()


@each_path
@both_predictions
@each_sampler
@pytest.mark.parametrize(("num_steps", "teacher_steps"), [(1, 2), (3, 2), (2, 4)])
def test_n_steps_of_the_optimum_of_progressive_distillation_are_m_n_steps_of_the_teacher(
    path: Path, prediction: PredictionType, sampler: TimeSampler, num_steps: int, teacher_steps: int
) -> None:
    teacher = exact_flow(path, prediction)
    objective = ProgressiveDistillation(sampler, num_steps=num_steps, teacher_steps=teacher_steps)
    student = composed_flow(path, sampler, num_steps, teacher_steps, prediction)
    assert_is_the_optimum(objective, student, teacher, data(6, seed(0)))
    x_0 = normal((4, K, D), seed(1))
    reached = ends(student, x_0, num_steps, sampler)
    torch.testing.assert_close(reached, ends(teacher, x_0, num_steps * teacher_steps, sampler), rtol=0, atol=1e-12)
    assert objective.trained_nfe == num_steps and objective.teacher_nfe == num_steps * teacher_steps


@each_sampler
def test_a_batch_starts_at_each_step_of_the_samplers_grid_equally_often(sampler: TimeSampler) -> None:
    times = ProgressiveDistillation(sampler, num_steps=5).times(batch_of(20))
    starts, counts = times[0].unique(return_counts=True)
    assert torch.equal(starts, grid_of(sampler).times(5)[:-1]) and counts.tolist() == [4] * 5
    assert all((t < s).all() for t, s in pairwise(times))
    assert len(times[0].diff().sign().unique()) > 1, "no entry of a batch is tied to a step"


@each_path
@each_sampler
def test_a_pair_of_reflow_is_noise_and_the_teachers_end_at_several_times(path: Path, sampler: TimeSampler) -> None:
    teacher, batch = exact_flow(path), batch_of(7, [3, 1, 2, 3, 3, 3, 3])
    student = FlowModel(Answering(GaussianModel(path, MEAN, COVARIANCE), "x1"), path, "x1")
    parts: list[Regression] = list(Reflow(sampler, num_steps=4, times_per_pair=3).regressions(student, batch, teacher))
    target, mask = torch.cat([part.target for part in parts]), torch.cat([part.mask for part in parts])
    exact = ends(teacher, batch.x_0[:3], 4, sampler, second_order=True) * batch.mask[:3, :, None]
    pair = torch.tensor([0, 1, 2, 0, 1, 2, 0])
    torch.testing.assert_close(target, exact[pair], rtol=0, atol=1e-12)
    assert torch.equal(mask, batch.mask[pair])


class Straight(ExactModel):
    """The flow of pairs x_1 = ``offset`` + x_0 ``matrix``: x_t determines x_0, so x_1."""

    def __init__(self, path: Path, offset: Tensor, matrix: Tensor) -> None:
        super().__init__(path)
        self.offset, self.matrix = offset, matrix

    def denoise(self, x_t: Tensor, t: Tensor, *, mask: Tensor | None = None, self_cond: Tensor | None = None) -> Tensor:
        """(B, K, D)."""
        alpha, sigma = self.path.alpha_sigma(t, x_t)
        mixed = alpha * self.matrix + sigma * torch.eye(D, dtype=x_t.dtype)
        return self.offset + torch.linalg.solve(mixed, x_t - alpha * self.offset, left=False) @ self.matrix


@each_path
@both_predictions
def test_the_optimum_of_reflow_goes_the_teachers_whole_way_in_one_step(path: Path, prediction: PredictionType) -> None:
    teacher, sampler, steps = exact_flow(path, prediction), UniformTime(), 16
    basis = torch.cat([torch.zeros(1, D), torch.eye(D)]).double()[:, None]
    seen = ends(teacher, basis, steps, sampler, second_order=True)[:, 0]
    offset, matrix = seen[0], seen[1:] - seen[0]
    student = FlowModel(Answering(Straight(path, offset, matrix), prediction), path, prediction)
    assert_is_the_optimum(Reflow(sampler, num_steps=steps), student, teacher, data(8, seed(0)))
    x_0 = normal((16, K, D), seed(1))
    in_one, in_many = ends(student, x_0, 1, sampler), ends(teacher, x_0, steps, sampler, second_order=True)
    torch.testing.assert_close(in_one, in_many, rtol=0, atol=1e-10)
    # And so the data's law is kept, but for the teacher's own error.
    assert (offset - MEAN).abs().max() < 0.02 and (matrix.T @ matrix - COVARIANCE).abs().max() < 0.02
