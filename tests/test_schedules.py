"""Laws of schedules, time grids and time samplers."""

import math
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from fewstep.schedules import (
    LINEAR,
    VARIANCE_PRESERVING,
    LogitNormalGrid,
    LogitNormalTime,
    Schedule,
    TimeGrid,
    TimeSampler,
    UniformGrid,
    UniformTime,
    grid_of,
)

SCHEDULES = [LINEAR, VARIANCE_PRESERVING]
GRIDS = [UniformGrid(), LogitNormalGrid(0.0, 1.0), LogitNormalGrid(-0.8, 0.6)]
each_schedule = pytest.mark.parametrize("schedule", SCHEDULES, ids=["linear", "variance_preserving"])
each_grid = pytest.mark.parametrize("grid", GRIDS, ids=lambda g: type(g).__name__)


@each_schedule
def test_derivatives_agree_with_autograd(schedule: Schedule) -> None:
    t = torch.linspace(0, 1, 41, dtype=torch.float64, requires_grad=True)
    for function, derivative in ((schedule.alpha, schedule.d_alpha), (schedule.sigma, schedule.d_sigma)):
        (expected,) = torch.autograd.grad(function(t).sum(), t)
        torch.testing.assert_close(derivative(t.detach()), expected, rtol=1e-13, atol=1e-13)


@each_schedule
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_ends_are_exact_so_that_the_last_step_holds_no_noise(schedule: Schedule, dtype: torch.dtype) -> None:
    ends = torch.tensor([0.0, 1.0], dtype=dtype)
    assert schedule.alpha(ends).tolist() == [0.0, 1.0]
    assert schedule.sigma(ends).tolist() == [1.0, 0.0]


@each_schedule
def test_sigma_is_inverted(schedule: Schedule) -> None:
    t = torch.linspace(0, 1, 41, dtype=torch.float64)
    torch.testing.assert_close(schedule.t_of_sigma(schedule.sigma(t)), t, rtol=0, atol=1e-8)
    assert schedule.t_of_sigma(torch.zeros(1)).item() == 1.0


def test_each_schedule_keeps_the_quantity_it_is_named_for() -> None:
    t = torch.linspace(0, 1, 41, dtype=torch.float64)
    linear, preserving = SCHEDULES
    torch.testing.assert_close(linear.alpha(t) + linear.sigma(t), torch.ones_like(t), rtol=0, atol=1e-15)
    torch.testing.assert_close(
        preserving.alpha(t) ** 2 + preserving.sigma(t) ** 2, torch.ones_like(t), rtol=0, atol=1e-15
    )


@each_schedule
def test_half_types_are_computed_in_float32(schedule: Schedule) -> None:
    t = torch.linspace(0, 1, 41).bfloat16()
    for function in (schedule.alpha, schedule.sigma, schedule.d_alpha, schedule.d_sigma, schedule.t_of_sigma):
        assert function(t).dtype == torch.float32
        torch.testing.assert_close(function(t), function(t.double()).float(), rtol=1e-6, atol=1e-7)


@each_grid
@pytest.mark.parametrize("num_steps", [1, 2, 3, 7, 32, 1000])
def test_grids_rise_strictly_from_exactly_0_to_exactly_1(grid: TimeGrid, num_steps: int) -> None:
    times = grid.times(num_steps)
    assert times.dtype == torch.float32 and times.shape == (num_steps + 1,)
    assert times[0].item() == 0.0 and times[-1].item() == 1.0
    assert bool((times.diff() > 0).all())


@each_grid
@pytest.mark.parametrize("num_steps", [0, -3])
def test_too_few_steps_are_named(grid: TimeGrid, num_steps: int) -> None:
    with pytest.raises(ValueError, match=f"num_steps is {num_steps}"):
        grid.times(num_steps)


def test_a_grid_that_float32_cannot_hold_is_refused() -> None:
    with pytest.raises(ValueError, match="coincide in float32"):
        LogitNormalGrid(0.0, 30.0).times(16)


@pytest.mark.parametrize("std", [0.0, -1.0, math.nan, math.inf])
def test_a_logit_normal_needs_a_spread(std: float) -> None:
    for build in (LogitNormalGrid, LogitNormalTime):
        with pytest.raises(ValueError, match="std is"):
            build(0.0, std)


def _distance(samples: Tensor, mean: float | None, std: float = 1.0) -> float:
    """Kolmogorov-Smirnov distance to the uniform (mean None) or logit-normal distribution."""
    samples = samples.double().sort().values
    cdf = samples if mean is None else torch.special.ndtr((torch.logit(samples) - mean) / std)
    edges = torch.arange(len(samples) + 1, dtype=torch.float64) / len(samples)
    return max((edges[1:] - cdf).max().item(), (cdf - edges[:-1]).max().item())


# A sampler, given whether it is stratified; then mean and standard deviation of the logits, None for uniform times.
Case = tuple[Callable[[bool], TimeSampler], float | None, float]
CASES: list[Case] = [
    (UniformTime, None, 1.0),
    (lambda stratified: LogitNormalTime(stratified=stratified), 0.0, 1.0),
    (lambda stratified: LogitNormalTime(-0.7, 1.6, stratified), -0.7, 1.6),
]
each_time_sampler = pytest.mark.parametrize("case", CASES)


@each_time_sampler
def test_plain_times_follow_their_distribution(case: Case) -> None:
    build, mean, std = case
    times = build(False).sample(20_000, torch.Generator().manual_seed(1))
    assert _distance(times, mean, std) < 1.63 / math.sqrt(20_000)  # the 1 % point


@each_time_sampler
def test_stratified_times_fill_every_bin_of_a_batch_once(case: Case) -> None:
    build, mean, std = case
    times = build(True).sample(64, torch.Generator().manual_seed(1))
    assert _distance(times, mean, std) < 1 / 64 + 1e-6
    assert not torch.equal(times, times.sort().values)


@each_time_sampler
def test_stratified_times_are_unbiased_at_each_place_of_a_batch(case: Case) -> None:
    build, mean, std = case
    generator, sampler = torch.Generator().manual_seed(2), build(True)
    firsts = torch.stack([sampler.sample(4, generator)[0] for _ in range(4_000)])
    assert _distance(firsts, mean, std) < 1.63 / math.sqrt(4_000)


@pytest.mark.parametrize("sampler", [UniformTime(), LogitNormalTime(), LogitNormalTime(0.0, 50.0)])
def test_times_stay_inside_the_open_interval_in_float32(sampler: TimeSampler) -> None:
    times = sampler.sample(50_000, torch.Generator().manual_seed(3))
    assert times.dtype == torch.float32
    assert times.min().item() > 0 and times.max().item() < 1


@pytest.mark.parametrize("sampler", [UniformTime(), LogitNormalTime(0.3, 1.2)], ids=["uniform", "logit_normal"])
def test_the_grid_of_a_time_sampler_is_part_of_every_finer_one_and_holds_equal_shares(sampler: TimeSampler) -> None:
    coarse = grid_of(sampler).times(4)
    assert torch.equal(coarse, grid_of(sampler).times(12)[::3])
    drawn = sampler.sample(4000, torch.Generator().manual_seed(0))
    shares = [((drawn > low) & (drawn <= high)).float().mean() for low, high in pairwise(coarse)]
    torch.testing.assert_close(torch.stack(shares), torch.full((4,), 0.25), rtol=0, atol=1e-3)
