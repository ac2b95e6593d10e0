"""Controls of re-injection: temperatures of the noise, and noise that is reused."""

import math

import pytest
import torch
from torch import Tensor

from fewstep.paths import Path, linear_path, variance_preserving_path
from fewstep.samplers import (
    CommitmentReinjection,
    ConstantReinjection,
    ElfReinjection,
    EulerSolver,
    FlowSampler,
    FreshNoise,
    HeunSolver,
    NoiseSource,
    Reinjection,
    ReusedNoise,
    Solver,
)
from tests.samplers.bases import BasisNoise, exact_states, shares_of_noise
from tests.toys import ConstantModel, MixingModel

PATHS = [linear_path(), variance_preserving_path()]
each_path = pytest.mark.parametrize("path", PATHS, ids=["linear", "variance_preserving"])
PARTLY_OPEN = CommitmentReinjection(lambda x1_hat: torch.full(x1_hat.shape[:2], 0.4))
each_solver = pytest.mark.parametrize("solver", [EulerSolver(), HeunSolver()], ids=["euler", "heun"])


@each_path
@each_solver
@pytest.mark.parametrize(
    "reinjection",
    [0.0, 0.6, PARTLY_OPEN],
    ids=["ode", "constant", "positions"],
)
def test_temperatures_of_1_and_fresh_noise_are_the_default_bit_for_bit(
    path: Path, solver: Solver, reinjection: float | Reinjection
) -> None:
    x_0 = torch.randn(1, 3, 4, generator=torch.Generator().manual_seed(4))
    default = FlowSampler(path, solver, reinjection=reinjection)
    spelled = FlowSampler(
        path, solver, reinjection=reinjection, noise=FreshNoise(), noise_temperature=1.0, initial_temperature=1.0
    )
    ours, theirs = (
        sampler.sample(MixingModel(path), x_0, num_steps=4, generator=torch.Generator().manual_seed(6))
        for sampler in (default, spelled)
    )
    assert all(torch.equal(a, b) for a, b in zip(ours.states, theirs.states, strict=True))


@each_path
@each_solver
@pytest.mark.parametrize("gamma", [0.0, 0.6, 1.0])
@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.2])
@pytest.mark.parametrize("by_position", [False, True])
def test_temperature_scales_the_old_noise_and_not_the_fresh(
    path: Path, solver: Solver, gamma: float, temperature: float, by_position: bool
) -> None:
    rule: Reinjection = ConstantReinjection(gamma)
    if by_position:
        rule = CommitmentReinjection(lambda x1_hat: torch.zeros(x1_hat.shape[:2]), gamma)
    sampler = FlowSampler(
        path, solver, reinjection=rule, noise=BasisNoise(), noise_temperature=temperature, initial_temperature=0.5
    )
    expected = torch.zeros_like(exact_states(sampler, 4)[0][2])
    expected[:, 0] = 0.5
    for k, (time, data, weights) in enumerate(exact_states(sampler, 4)):
        t = torch.tensor(time, dtype=torch.float64)
        if k > 0:
            expected = expected * temperature * math.sqrt(1 - gamma**2)
            expected[:, k] = gamma
        torch.testing.assert_close(data, path.schedule.alpha(t).expand(1), rtol=0, atol=1e-9)
        torch.testing.assert_close(weights, path.schedule.sigma(t) * expected, rtol=0, atol=1e-7)


@each_path
@pytest.mark.parametrize("gamma", [0.3, 0.8])
def test_reused_noise_has_the_law_after_one_step_and_too_much_variance_after_two(path: Path, gamma: float) -> None:
    kept = math.sqrt(1 - gamma**2)
    reused = shares_of_noise(path, ConstantReinjection(gamma), 5, BasisNoise(reused=True)).square()
    expected = torch.tensor([1.0, 1.0, 1 + 2 * gamma**2 * kept], dtype=torch.float64)
    torch.testing.assert_close(reused[:3], expected, rtol=1e-9, atol=0)
    assert bool((reused.diff()[1:] > 0).all())
    fresh = shares_of_noise(path, ConstantReinjection(gamma), 5).square()
    torch.testing.assert_close(fresh, torch.ones_like(fresh), rtol=1e-9, atol=0)


def test_reused_noise_is_one_draw_of_its_own_and_fresh_noise_a_new_one_each_step() -> None:
    def states(noise: NoiseSource) -> Tensor:
        path, x_0 = linear_path(), torch.randn(4_000, 1, 1, generator=torch.Generator().manual_seed(8))
        trajectory = FlowSampler(path, reinjection=1.0, noise=noise).sample(
            ConstantModel(path, torch.zeros(1, 1)), x_0, num_steps=4, generator=torch.Generator().manual_seed(9)
        )
        return torch.stack(trajectory.states[:-1]).flatten(1)

    for noise, correlation in ((FreshNoise(), 0.0), (ReusedNoise(), 1.0)):
        matrix = torch.corrcoef(states(noise))
        torch.testing.assert_close(matrix[1:, 1:] - torch.eye(3), correlation * (1 - torch.eye(3)), rtol=0, atol=0.05)
        assert matrix[0, 1:].abs().max() < 0.05  # the initial noise is another


def test_noise_is_drawn_when_it_is_asked_for() -> None:
    generator = torch.Generator().manual_seed(1)
    before = generator.get_state()
    for noise in (FreshNoise(), ReusedNoise()):
        draws = noise.draws(torch.zeros(2, 3), generator)
        assert torch.equal(generator.get_state(), before)
        assert next(draws).shape == (2, 3)
        generator.set_state(before)


@pytest.mark.parametrize("name", ["noise_temperature", "initial_temperature"])
@pytest.mark.parametrize("value", [-0.1, math.nan, math.inf])
def test_an_impossible_temperature_is_named(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{name} is {value}"):
        FlowSampler(linear_path(), **{name: value})


def test_what_concerns_the_initial_noise_leaves_a_start_in_the_middle_alone() -> None:
    x_t = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(4))
    for sampler in (
        FlowSampler(linear_path(), initial_temperature=0.5),
        FlowSampler(linear_path(), reinjection=ElfReinjection(1.5)),
    ):
        whole, rest = (
            next(
                sampler.iterate(
                    MixingModel(linear_path()), x_t, num_steps=4, start_step=start, generator=torch.Generator()
                )
            )
            for start in (0, 2)
        )
        assert torch.equal(rest.x_t, x_t)
        assert not torch.allclose(whole.x_t, x_t)
