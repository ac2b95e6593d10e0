"""Solvers against closed forms: order of convergence, the exact solution, known algorithms elsewhere."""

import math
from itertools import pairwise

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import Tensor

from fewstep.paths import Path, linear_path
from fewstep.samplers import FlowSampler, Solver, euler, heun
from fewstep.schedules import LogitNormalGrid, TimeGrid, UniformGrid
from tests.samplers.bases import each_path
from tests.samplers.bases import noise as _noise
from tests.toys import GaussianModel, MixingModel


def _gaussian(path: Path) -> GaussianModel:
    covariance = torch.tensor([[1.6, 0.5, 0.0], [0.5, 0.7, 0.2], [0.0, 0.2, 0.3]], dtype=torch.float64)
    return GaussianModel(path, torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64), covariance)


def _end(model: object, sampler: FlowSampler, x_0: Tensor, num_steps: int) -> Tensor:
    return sampler.sample(model, x_0, num_steps=num_steps, generator=torch.Generator()).x_1


@each_path
@pytest.mark.parametrize(("solver", "order"), [(euler, 1), (heun, 2)], ids=["euler", "heun"])
def test_measured_order_of_convergence(path: Path, solver: Solver, order: int) -> None:
    model, x_0 = _gaussian(path), _noise(8, 2, 3)
    exact = model.flow(x_0, torch.ones(8, dtype=torch.float64))
    sampler = FlowSampler(path, solver=solver)
    errors = [(_end(model, sampler, x_0, n) - exact).square().mean().sqrt().item() for n in (32, 64, 128)]
    for coarse, fine in pairwise(errors):
        assert abs(math.log2(coarse / fine) - order) < 0.15
    assert errors[-1] < (0.02 if order == 1 else 2e-4)


@pytest.mark.parametrize("grid", [UniformGrid(), LogitNormalGrid(-0.3, 0.9)], ids=["uniform", "logit_normal"])
@pytest.mark.parametrize("gamma", [0.0, 1.0], ids=["deterministic", "stochastic"])
@pytest.mark.parametrize("num_steps", [1, 4, 9])
def test_euler_steps_equal_those_of_diffusers(grid: TimeGrid, gamma: float, num_steps: int) -> None:
    """Its time is sigma = 1 - t and its velocity points to the noise; gamma = 1 is its stochastic_sampling."""
    path = linear_path()
    x_0 = _noise(3, 2, 4, dtype=torch.float32)
    ours = FlowSampler(path, grid=grid, reinjection=gamma).sample(
        MixingModel(path), x_0, num_steps=num_steps, generator=torch.Generator().manual_seed(5)
    )
    scheduler = FlowMatchEulerDiscreteScheduler(stochastic_sampling=gamma == 1.0)
    scheduler.set_timesteps(sigmas=(1 - grid.times(num_steps)[:-1]).tolist())
    model, x, generator, previous = MixingModel(path), x_0, torch.Generator().manual_seed(5), None
    for k, timestep in enumerate(scheduler.timesteps):
        t = (1 - scheduler.sigmas[k]).expand(3)
        previous = model.denoise(x, t, self_cond=previous)
        noiseward = -model.velocity_of(x, previous, t)
        x = scheduler.step(noiseward, timestep, x, generator=generator, return_dict=False)[0]
        torch.testing.assert_close(ours.states[k + 1], x, rtol=1e-4, atol=1e-5)
