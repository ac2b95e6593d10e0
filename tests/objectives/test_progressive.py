"""Laws of progressive distillation: N steps of its optimum are m N steps of the teacher, round after round."""

import pytest
import torch
from torch import Tensor

from fewstep.denoisers import FlowModel, PredictionType
from fewstep.objectives.few_step import Draw, x1_from_prediction
from fewstep.objectives.grids import grid_of
from fewstep.objectives.progressive import ProgressiveDistillation
from fewstep.paths import Path, linear_path, variance_preserving_path
from fewstep.samplers import FlowSampler
from fewstep.schedules import LogitNormalTime, TimeSampler, UniformTime
from fewstep.types import Latents
from tests.nn.builders import normal
from tests.objectives.teachers import (
    COVARIANCE,
    MEAN,
    Answering,
    D,
    K,
    SmallNetwork,
    gaussian_flow,
    some_latents,
)
from tests.toys import ExactModel, GaussianModel

each_path = pytest.mark.parametrize(
    "path", [linear_path(), variance_preserving_path()], ids=["linear", "variance_preserving"]
)
both_predictions = pytest.mark.parametrize("prediction", ["x1", "velocity"])
each_sampler = pytest.mark.parametrize(
    "sampler", [UniformTime(), LogitNormalTime(0.3, 1.2)], ids=["uniform", "logit_normal"]
)


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
        return torch.stack([self._one(x[None], float(time))[0] for x, time in zip(x_t, t, strict=True)])

    def _one(self, x: Tensor, start: float) -> Tensor:
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
    exact: ExactModel, sampler: TimeSampler, num_steps: int, teacher_steps: int, prediction: PredictionType
) -> FlowModel:
    times = grid_of(sampler).times(num_steps * teacher_steps)
    network = Answering(Composed(exact.path, exact, times, teacher_steps), prediction)
    return FlowModel(network, exact.path, prediction)


def ends(model: FlowModel, sampler: TimeSampler, x_0: Tensor, num_steps: int) -> Tensor:
    with torch.no_grad():
        flow_sampler = FlowSampler(model.path, grid=grid_of(sampler))
        return flow_sampler.sample(model, x_0, num_steps=num_steps, generator=torch.Generator()).x_1


@each_path
@both_predictions
@each_sampler
@pytest.mark.parametrize(("num_steps", "teacher_steps"), [(1, 2), (3, 2), (2, 4)])
def test_the_gradient_vanishes_where_each_step_is_the_teachers_steps_composed(
    path: Path,
    prediction: PredictionType,
    sampler: TimeSampler,
    num_steps: int,
    teacher_steps: int,
    generator: torch.Generator,
) -> None:
    teacher = gaussian_flow(path, prediction)
    objective = ProgressiveDistillation(sampler, num_steps=num_steps, teacher_steps=teacher_steps)
    student = composed_flow(GaussianModel(path, MEAN, COVARIANCE), sampler, num_steps, teacher_steps, prediction)
    latents = some_latents(6, generator)

    def loss() -> Tensor:
        return objective.forward(
            student, latents, tokens=None, readout=None, generator=torch.Generator().manual_seed(5), teacher=teacher
        ).loss

    at_optimum = loss()
    assert at_optimum < 1e-20 and student.network.gradient(at_optimum).abs().max() < 1e-10
    with torch.no_grad():
        student.network.shift += 0.1
    torch.testing.assert_close(loss().item(), 0.01, rtol=1e-6, atol=0)
    # And so its N steps are the teacher's m N, wherever the noise lies.
    with torch.no_grad():
        student.network.shift.zero_()
    x_0 = normal((4, K, D), generator)
    one, other = ends(student, sampler, x_0, num_steps), ends(teacher, sampler, x_0, num_steps * teacher_steps)
    torch.testing.assert_close(one, other, rtol=0, atol=1e-12)
    assert objective.trained_nfe == num_steps and objective.teacher_nfe == num_steps * teacher_steps


@each_path
@each_sampler
def test_rounds_that_each_learn_from_the_last_agree_with_a_fixed_teacher_of_more_steps(
    path: Path, sampler: TimeSampler, generator: torch.Generator
) -> None:
    exact, first = GaussianModel(path, MEAN, COVARIANCE), gaussian_flow(path)
    halved = composed_flow(exact, sampler, 2, 2, "velocity")  # the optimum of the round before
    latents = some_latents(4, generator)
    draw = Draw(latents.z, normal((4, K, D), generator), latents.mask, generator, 1.0)
    targets = []
    for teacher, teacher_steps in ((halved, 2), (first, 4)):
        objective = ProgressiveDistillation(sampler, num_steps=1, teacher_steps=teacher_steps)
        (part,) = objective.regressions(first, draw, teacher)
        targets.append(x1_from_prediction(first, part.target, part.x_t, part.t))
    torch.testing.assert_close(targets[0], targets[1], rtol=0, atol=1e-12)
    torch.testing.assert_close(targets[0], ends(first, sampler, draw.x_0, 4), rtol=0, atol=1e-12)


@each_sampler
def test_a_batch_starts_at_each_step_of_the_samplers_grid_equally_often(
    sampler: TimeSampler, generator: torch.Generator
) -> None:
    model, latents = gaussian_flow(linear_path()), some_latents(20, generator)
    draw = Draw(latents.z, normal((20, K, D), generator), latents.mask, generator, 1.0)
    (part,) = ProgressiveDistillation(sampler, num_steps=5).regressions(model, draw, model)
    starts, counts = part.t.unique(return_counts=True)
    assert torch.equal(starts, grid_of(sampler).times(5)[:-1]) and counts.tolist() == [4] * 5
    torch.testing.assert_close(part.x_t, model.path.sample(draw.x_1, draw.x_0, part.t))
    assert len(part.t.diff().sign().unique()) > 1, "no entry of a batch is tied to a step"


def train(
    objective: ProgressiveDistillation, student: FlowModel, teacher: FlowModel, steps: int, generator: torch.Generator
) -> None:
    optimiser = torch.optim.Adam(student.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for _ in range(steps):
        latents = some_latents(64, generator)
        latents = Latents(latents.z.float(), latents.mask)
        loss = objective.forward(student, latents, tokens=None, readout=None, generator=generator, teacher=teacher).loss
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()


@each_path
def test_a_small_network_learns_in_two_rounds_to_go_in_one_step_where_the_flow_goes_in_four(
    path: Path, generator: torch.Generator
) -> None:
    sampler, x_0 = UniformTime(), torch.randn((128, K, D), generator=generator)
    flow = gaussian_flow(path).float()
    flow.network.exact = GaussianModel(path, MEAN.float(), COVARIANCE.float())
    exact = ends(flow, sampler, x_0, 4)

    def error(model: FlowModel) -> float:
        return float((ends(model, sampler, x_0, 1) - exact).square().mean())

    rounds = [flow]
    for num_steps in (2, 1):
        student = FlowModel(SmallNetwork(D), path, "x1")
        if len(rounds) > 1:
            student.load_state_dict(rounds[-1].state_dict())
        train(ProgressiveDistillation(sampler, num_steps=num_steps), student, rounds[-1], 250, generator)
        rounds.append(student)
    assert error(rounds[2]) < 0.02 * error(flow), (error(flow), error(rounds[1]), error(rounds[2]))
