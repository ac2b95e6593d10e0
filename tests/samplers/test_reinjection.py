"""Re-injection of one strength a step: the house formula, what is drawn, and errors before any evaluation."""

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from fewstep.paths import Path, linear_path, variance_preserving_path
from fewstep.samplers import (
    ConstantReinjection,
    EulerSolver,
    FlowSampler,
    HeunSolver,
    ListedReinjection,
    Solver,
    TimedReinjection,
)
from fewstep.samplers.reinjection import jump_time
from fewstep.schedules import LogitNormalGrid
from tests.samplers.bases import BasisNoise, exact_states
from tests.toys import ConstantModel, MixingModel

PATHS = [linear_path(), variance_preserving_path()]
each_path = pytest.mark.parametrize("path", PATHS, ids=["linear", "variance_preserving"])
each_solver = pytest.mark.parametrize("solver", [EulerSolver(), HeunSolver()], ids=["euler", "heun"])
NUM_STEPS = 4


def _noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@each_path
@pytest.mark.parametrize("gamma", [0.0, 0.3, 0.8, 1.0])
def test_with_euler_the_jump_and_the_way_back_are_the_house_formula(path: Path, gamma: float) -> None:
    model, x_0, grid = MixingModel(path), _noise(3, 2, 4), LogitNormalGrid()
    ours = FlowSampler(path, EulerSolver(), grid, gamma).sample(
        model, x_0, num_steps=NUM_STEPS, generator=torch.Generator().manual_seed(1)
    )
    generator, x, previous = torch.Generator().manual_seed(1), x_0, None
    for k, (t, s) in enumerate(pairwise(grid.times(NUM_STEPS).double())):
        alpha_t, alpha_s = path.schedule.alpha(t), path.schedule.alpha(s)
        sigma_t, sigma_s = path.schedule.sigma(t), path.schedule.sigma(s)
        x1_hat = model.denoise(x, t.expand(3), self_cond=previous)
        eps_hat = (x - alpha_t * x1_hat) / sigma_t
        xi = torch.randn(x.shape, generator=generator).double()
        x = alpha_s * x1_hat + sigma_s * (math.sqrt(1 - gamma**2) * eps_hat + gamma * xi)
        previous = x1_hat
        torch.testing.assert_close(ours.states[k + 1], x, rtol=0, atol=2e-8)  # t~ passes through an arcsine
        torch.testing.assert_close(ours.predictions[k], x1_hat, rtol=0, atol=2e-7)
    assert torch.equal(ours.x_1, ours.predictions[-1])


@each_path
@each_solver
@pytest.mark.parametrize("gamma", [0.0, 0.3, 1.0])
def test_with_the_true_pair_each_step_keeps_its_share_of_the_noise_and_draws_one_of_its_own(
    path: Path, solver: Solver, gamma: float
) -> None:
    sampler = FlowSampler(path, solver, LogitNormalGrid(), gamma, noise=BasisNoise())
    expected = torch.zeros_like(exact_states(sampler, NUM_STEPS)[0][2])
    expected[:, 0] = 1
    for k, (time, _, weights) in enumerate(exact_states(sampler, NUM_STEPS)):
        if k > 0:
            expected *= math.sqrt(1 - gamma**2)
            expected[:, k] = gamma
        sigma = path.schedule.sigma(torch.tensor(time, dtype=torch.float64))
        torch.testing.assert_close(weights, sigma * expected, rtol=0, atol=1e-7)


@each_path
@pytest.mark.parametrize("gamma", [0.0, 0.3, 0.999, 1.0])
def test_the_jump_leaves_room_for_exactly_the_fresh_noise(path: Path, gamma: float) -> None:
    s = torch.linspace(0.05, 0.95, 7, dtype=torch.float64)
    t_jump = jump_time(path, s, math.sqrt(1 - gamma**2))
    sigma_jump, sigma_s = path.schedule.sigma(t_jump), path.schedule.sigma(s)
    torch.testing.assert_close(sigma_jump**2 + (gamma * sigma_s) ** 2, sigma_s**2, rtol=1e-12, atol=1e-14)
    assert bool((t_jump >= s).all()) and bool((t_jump <= 1).all())


@each_path
@each_solver
def test_without_strength_nothing_is_drawn_and_the_result_is_the_plain_loop_bit_for_bit(
    path: Path, solver: Solver
) -> None:
    model, x_0, grid = MixingModel(path), _noise(3, 2, 4).float(), LogitNormalGrid()
    generator = torch.Generator().manual_seed(6)
    before = generator.get_state()
    ours = FlowSampler(path, solver, grid, 0.0).sample(model, x_0, num_steps=NUM_STEPS, generator=generator)
    assert torch.equal(generator.get_state(), before)
    x, previous = x_0, None
    for time, next_time in pairwise(grid.times(NUM_STEPS).tolist()):
        t, s = torch.full((3,), time), torch.full((3,), next_time)
        step = solver.step(model, path, x, model.denoise(x, t, self_cond=previous), t, s)
        x, previous = step.x_s, step.x1_hat
    assert torch.equal(ours.x_1, x)


@each_solver
def test_the_last_step_draws_nothing(solver: Solver) -> None:
    path, generator = linear_path(), torch.Generator().manual_seed(7)
    before = generator.get_state()
    FlowSampler(path, solver, reinjection=1.0).sample(
        MixingModel(path), _noise(2, 2, 2), num_steps=1, generator=generator
    )
    assert torch.equal(generator.get_state(), before)


def test_each_step_draws_its_own_noise() -> None:
    path = linear_path()
    model = ConstantModel(path, torch.zeros(2, 3, dtype=torch.float64))
    trajectory = FlowSampler(path, reinjection=1.0).sample(
        model, _noise(2, 2, 3), num_steps=3, generator=torch.Generator().manual_seed(8)
    )
    first, second = trajectory.states[1] / (2 / 3), trajectory.states[2] / (1 / 3)
    assert (first - second).abs().min() > 1e-3


def test_number_list_and_schedule_mean_the_same() -> None:
    path, x_0 = linear_path(), _noise(2, 2, 3)
    ends = [
        FlowSampler(path, reinjection=value)
        .sample(MixingModel(path), x_0, num_steps=3, generator=torch.Generator().manual_seed(9))
        .x_1
        for value in (0.4, [0.4, 0.4, 0.4], ConstantReinjection(0.4), ListedReinjection([0.4, 0.4, 0.9]))
    ]
    assert all(torch.equal(end, ends[0]) for end in ends)


@pytest.mark.parametrize("gamma", [-0.1, 1.0001, math.nan])
def test_a_strength_outside_0_to_1_is_named(gamma: float) -> None:
    for value in (gamma, [0.5, gamma]):
        with pytest.raises(ValueError, match=f"strength is {gamma}"):
            FlowSampler(linear_path(), reinjection=value)


class _OwnSchedule(TimedReinjection):
    """A user's schedule that does not keep its promise."""

    def __init__(self, values: list[float]) -> None:
        self.values = values

    def strengths(self, path: Path, times: Tensor) -> Tensor:
        return torch.tensor(self.values)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([0.1, 0.2], "2 re-injection strengths for 3 steps"),
        (_OwnSchedule([0.1]), r"shape \(1,\) for 3 steps"),
        (_OwnSchedule([0.1, 2.0, 0.0]), "expected numbers between 0 and 1"),
    ],
)
def test_strengths_that_do_not_fit_the_steps_are_named_before_any_evaluation(value: object, message: str) -> None:
    model = MixingModel(linear_path())
    with pytest.raises(ValueError, match=message):
        FlowSampler(linear_path(), reinjection=value).iterate(
            model, _noise(1, 2, 3), num_steps=3, generator=torch.Generator()
        )
    assert not model.calls
