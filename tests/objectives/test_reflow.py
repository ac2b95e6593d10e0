"""Laws of reflow: its pairs are the teacher's, its optimum keeps what noise becomes, and goes there straight."""

import pytest
import torch
from torch import Tensor

from fewstep.denoisers import FlowModel, PredictionType
from fewstep.objectives.few_step import Draw
from fewstep.objectives.grids import grid_of
from fewstep.objectives.reflow import Reflow
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
    TwoModes,
    gaussian_flow,
    some_latents,
)
from tests.toys import ExactModel

each_path = pytest.mark.parametrize(
    "path", [linear_path(), variance_preserving_path()], ids=["linear", "variance_preserving"]
)
both_predictions = pytest.mark.parametrize("prediction", ["x1", "velocity"])


def trajectory(
    model: FlowModel | ExactModel, x_0: Tensor, num_steps: int, sampler: TimeSampler, second_order: bool
) -> list[tuple[float, Tensor]]:
    with torch.no_grad():
        solver = "heun" if second_order else "euler"
        found = FlowSampler(model.path, solver=solver, grid=grid_of(sampler)).sample(
            model, x_0, num_steps=num_steps, generator=torch.Generator()
        )
    return list(zip(found.times.tolist(), found.states, strict=True))


def curvature(states: list[tuple[float, Tensor]], path: Path) -> float:
    """E int |dx_t/dt - u_t|^2 dt / E int |u_t|^2 dt, with u_t the velocity of one jump: 0 is straight (S(Z) of
    arXiv:2209.03003, section 2)."""
    x_0, x_1 = states[0][1].double(), states[-1][1].double()
    on_jump = [path.sample(x_1, x_0, x_0.new_full((len(x_0),), t)) for t, _ in states]
    away = along = 0.0
    for k in range(len(states) - 1):
        length, jumped = states[k + 1][0] - states[k][0], on_jump[k + 1] - on_jump[k]
        moved = states[k + 1][1].double() - states[k][1].double()
        away += float((moved - jumped).square().sum()) / length
        along += float(jumped.square().sum()) / length
    return away / along


@each_path
@pytest.mark.parametrize("second_order", [True, False])
@pytest.mark.parametrize("sampler", [UniformTime(), LogitNormalTime(0.3, 1.2)], ids=["uniform", "logit_normal"])
def test_a_pair_is_noise_and_the_samplers_end_from_it_at_several_times(
    path: Path, second_order: bool, sampler: TimeSampler, generator: torch.Generator
) -> None:
    model, latents = gaussian_flow(path), some_latents(7, generator, [3, 1, 2, 3, 3, 3, 3])
    draw = Draw(latents.z, normal((7, K, D), generator) * latents.mask[..., None], latents.mask, generator, 1.0)
    objective = Reflow(sampler, num_steps=4, second_order=second_order, times_per_pair=3)
    parts = objective.regressions(model, draw, model)
    assert [len(part.t) for part in parts] == [3, 3, 1] and all(part.rows.start == 0 for part in parts)
    exact = trajectory(model, draw.x_0[:3], 4, sampler, second_order)[-1][1] * latents.mask[:3, :, None]
    for part in parts:
        torch.testing.assert_close(part.target, exact[part.rows], rtol=0, atol=1e-12)
        torch.testing.assert_close(part.x_t, path.sample(exact[part.rows], draw.x_0[part.rows], part.t))
    assert len(torch.cat([part.t for part in parts]).unique()) == 7


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


def affine_map(teacher: FlowModel, num_steps: int) -> tuple[Tensor, Tensor]:
    """Offset (D,) and matrix (D, D) with x_1 = offset + x_0 matrix, for a flow that is affine in its state."""
    basis = torch.cat([torch.zeros(1, D), torch.eye(D)]).double()[:, None]
    seen = trajectory(teacher, basis, num_steps, UniformTime(), True)[-1][1][:, 0]
    return seen[0], seen[1:] - seen[0]


def law_error(teacher: FlowModel, num_steps: int) -> float:
    """Largest distance of the moments of the pairs' x_1 from the data's."""
    offset, matrix = affine_map(teacher, num_steps)
    return max(float((offset - MEAN).abs().max()), float((matrix.T @ matrix - COVARIANCE).abs().max()))


@each_path
@both_predictions
def test_the_optimum_for_gaussian_data_is_straight_and_keeps_the_marginal_in_one_step(
    path: Path, prediction: PredictionType, generator: torch.Generator
) -> None:
    teacher, sampler, steps = gaussian_flow(path, prediction), UniformTime(), 16
    offset, matrix = affine_map(teacher, steps)
    student = FlowModel(Answering(Straight(path, offset, matrix), prediction), path, prediction)
    objective, latents = Reflow(sampler, num_steps=steps), some_latents(8, generator)

    def loss() -> Tensor:
        return objective.forward(
            student, latents, tokens=None, readout=None, generator=torch.Generator().manual_seed(5), teacher=teacher
        ).loss

    at_optimum = loss()
    assert at_optimum < 1e-18 and student.network.gradient(at_optimum).abs().max() < 1e-8
    with torch.no_grad():
        student.network.shift += 0.1
    torch.testing.assert_close(loss().item(), 0.01, rtol=1e-5, atol=0)
    with torch.no_grad():
        student.network.shift.zero_()
    # Its one step is the teacher's whole way, whose end has the data's law but for the solver's error.
    x_0 = normal((16, K, D), generator)
    ends = [
        trajectory(model, x_0, n, sampler, second)[-1][1]
        for model, n, second in ((student, 1, False), (teacher, steps, True))
    ]
    torch.testing.assert_close(ends[0], ends[1], rtol=0, atol=1e-10)
    assert law_error(teacher, 64) < law_error(teacher, steps) / 10 < 0.002
    curved, straight = (curvature(trajectory(model, x_0, steps, sampler, True), path) for model in (teacher, student))
    assert straight < 1e-12 < 1e-2 < curved


@each_path
def test_a_trained_toy_is_straighter_than_its_teacher_and_keeps_its_marginal(
    path: Path, generator: torch.Generator
) -> None:
    teacher = FlowModel(Answering(TwoModes(path), "x1", latent_dim=1).float(), path, "x1")
    student = FlowModel(SmallNetwork(1, width=32), path, "velocity")
    train(Reflow(UniformTime(), num_steps=8), student, teacher, 300, generator)
    x_0 = torch.randn((512, 1, 1), generator=generator)
    curved, jump_errors, ends = [], [], []
    for model in (teacher, student):
        states = trajectory(model, x_0, 16, UniformTime(), True)
        curved.append(curvature(states, path))
        ends.append(states[-1][1].flatten())
        one_step = trajectory(model, x_0, 1, UniformTime(), False)[-1][1].flatten()
        jump_errors.append(float((one_step - ends[-1]).square().mean()))
    # The Wasserstein-1 distance of what the same noise becomes; the data's own deviation is 1.2.
    distance = float((ends[0].sort().values - ends[1].sort().values).abs().mean())
    assert distance < 0.12, (distance, curved, jump_errors)
    assert curved[1] < curved[0] / 10 and jump_errors[1] < jump_errors[0] / 10, (distance, curved, jump_errors)


def train(objective: Reflow, student: FlowModel, teacher: FlowModel, steps: int, generator: torch.Generator) -> None:
    optimiser = torch.optim.Adam(student.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 2e-2, total_steps=steps)
    latents = Latents(torch.zeros(256, 1, 1), torch.ones(256, 1).bool())
    for _ in range(steps):
        output = objective.forward(student, latents, tokens=None, readout=None, generator=generator, teacher=teacher)
        optimiser.zero_grad()
        output.loss.backward()
        optimiser.step()
        schedule.step()
