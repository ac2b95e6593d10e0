"""Laws of re-injection. With the true pair each state has exactly the path's mean and variance, at each position;
strength 0 is the flow's ODE, strength 1 the re-noising of consistency sampling; controls do what they say."""

import math
from itertools import pairwise

import pytest
import torch

from fewstep.paths import Path
from fewstep.paths import linear_path as linear
from fewstep.samplers import FlowSampler, Solver
from fewstep.schedules import LogitNormalGrid
from tests.samplers.bases import each_path, each_solver, exact_states, noise, shares_of_noise
from tests.toys import MixingModel

NUM_STEPS, NUM_POSITIONS = 5, 3
HOW_DECIDED = torch.tensor([[0.0, 0.37, 1.0]], dtype=torch.float64)

PRESERVING = [
    "0",
    "0.6",
    "1",
    "0.1,1,0,0.7,0.3",
    "linear:0.2,0.9",
    "cosine:1,0.1",
    "window:0.8,0,0.5",
    "ancestral",
    "ancestral:0.4",
    "churn:5",
    "churn:0.5,0.3,2",
    "by_position:0.8",
]


@each_path
@each_solver
@pytest.mark.parametrize("rule", PRESERVING)
def test_with_the_true_pair_each_state_has_exactly_the_paths_law_at_each_position(
    path: Path, solver: Solver, rule: str
) -> None:
    sampler = FlowSampler(
        path, solver=solver, grid=LogitNormalGrid(), reinjection=rule, decidedness=lambda x1_hat, mask: HOW_DECIDED
    )
    states = exact_states(sampler, NUM_STEPS, NUM_POSITIONS)
    assert len(states) == NUM_STEPS + 1
    for time, weight_of_data, weights_of_noise in states:
        t = torch.tensor(time, dtype=torch.float64)
        torch.testing.assert_close(weight_of_data, path.schedule.alpha(t).expand(NUM_POSITIONS), rtol=0, atol=1e-12)
        variance = path.schedule.sigma(t).square().expand(NUM_POSITIONS)
        torch.testing.assert_close(weights_of_noise.square().sum(-1), variance, rtol=0, atol=1e-12)


@each_path
@each_solver
@pytest.mark.parametrize(
    ("rule", "decided"),
    [("0", 0.0), ("elf:0", 0.0), ("elf_cooling:0", 0.0), ("by_position:1", 1.0), ("by_position:0", 0.0)],
)
def test_without_strength_the_result_is_the_plain_loop_bit_for_bit(
    path: Path, solver: Solver, rule: str, decided: float
) -> None:
    model, x_0, grid = MixingModel(path), noise(2, 3, 4, dtype=torch.float32), LogitNormalGrid()
    sampler = FlowSampler(
        path,
        solver=solver,
        grid=grid,
        reinjection=rule,
        decidedness=lambda x1_hat, mask: torch.full(x1_hat.shape[:2], decided),
    )
    generator = torch.Generator().manual_seed(5)
    before = generator.get_state()
    states = sampler.sample(model, x_0, num_steps=4, generator=generator).states
    assert rule.startswith("by_position") or torch.equal(generator.get_state(), before)
    x, previous = x_0, None
    for (time, next_time), state in zip(pairwise(grid.times(4).tolist()), states[1:], strict=True):
        t, s = torch.full((2,), time), torch.full((2,), next_time)
        x1_hat = model.denoise(x, t, self_cond=previous)
        x, previous = solver(lambda x, t, c: model.denoise(x, t, self_cond=c), path, x, x1_hat, t, s)
        assert torch.equal(state, x)


@each_path
@pytest.mark.parametrize("gamma", [0.0, 0.3, 0.8, 1.0])
def test_with_euler_the_jump_and_the_return_are_the_formula_of_re_injection(path: Path, gamma: float) -> None:
    model, x_0, grid = MixingModel(path), noise(3, 2, 4), LogitNormalGrid()
    ours = FlowSampler(path, grid=grid, reinjection=gamma).sample(
        model, x_0, num_steps=4, generator=torch.Generator().manual_seed(1)
    )
    generator, x, previous = torch.Generator().manual_seed(1), x_0, None
    for k, (t, s) in enumerate(pairwise(grid.times(4).double())):
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
@pytest.mark.parametrize("gamma", [0.0, 0.6, 1.0])
@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.0, 1.2])
@pytest.mark.parametrize("rule", ["constant", "by_position"])
def test_each_step_keeps_its_share_of_old_noise_temperature_scales_that_only_and_noise_scale_what_is_drawn(
    path: Path, solver: Solver, gamma: float, temperature: float, rule: str
) -> None:
    sampler = FlowSampler(
        path,
        solver=solver,
        reinjection=f"{rule}:{gamma}",
        noise_temperature=temperature,
        noise_scale=0.5,
        decidedness=lambda x1_hat, mask: torch.zeros(x1_hat.shape[:2]),
    )
    expected = torch.zeros_like(exact_states(sampler, 4)[0][2])
    expected[:, 0] = 0.5
    for k, (time, data, weights) in enumerate(exact_states(sampler, 4)):
        t = torch.tensor(time, dtype=torch.float64)
        if k > 0:
            expected = expected * temperature * math.sqrt(1 - gamma**2)
            expected[:, k] = 0.5 * gamma
        torch.testing.assert_close(data, path.schedule.alpha(t).expand(1), rtol=0, atol=1e-9)
        torch.testing.assert_close(weights, path.schedule.sigma(t) * expected, rtol=0, atol=1e-7)


@each_path
@pytest.mark.parametrize("gamma", [0.3, 0.8])
def test_reused_noise_has_the_law_after_one_step_and_too_much_variance_after_two(path: Path, gamma: float) -> None:
    reused = shares_of_noise(path, gamma, 5, reuse_noise=True).square()
    too_much = 1 + 2 * gamma**2 * math.sqrt(1 - gamma**2)
    torch.testing.assert_close(reused[:3], torch.tensor([1.0, 1.0, too_much]).double(), rtol=1e-7, atol=0)
    assert bool((reused.diff()[1:] > 0).all())


@pytest.mark.parametrize("settings", [{"noise_scale": 0.5}, {"reinjection": "elf"}])
def test_what_concerns_the_initial_noise_leaves_a_start_in_the_middle_alone(settings: dict) -> None:
    x_t, sampler, model = noise(2, 3, 4), FlowSampler(linear(), **settings), MixingModel(linear())
    whole, rest = (
        next(sampler.iterate(model, x_t, num_steps=4, start_step=start, generator=torch.Generator()))
        for start in (0, 2)
    )
    assert torch.equal(rest.x_t, x_t)
    assert not torch.allclose(whole.x_t, x_t)
