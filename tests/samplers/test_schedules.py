"""Schedules of strength over time: their values, and the algorithms that two of them come from."""

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from fewstep.paths import Path, linear_path, variance_preserving_path
from fewstep.samplers import (
    AncestralReinjection,
    ChurnReinjection,
    ConstantReinjection,
    CosineReinjection,
    FlowSampler,
    LinearReinjection,
    ListedReinjection,
    TimedReinjection,
    WindowReinjection,
    early_reinjection,
    late_reinjection,
)
from fewstep.schedules import LogitNormalGrid, UniformGrid
from tests.toys import MixingModel

PATHS = [linear_path(), variance_preserving_path()]
each_path = pytest.mark.parametrize("path", PATHS, ids=["linear", "variance_preserving"])


def strengths(schedule: TimedReinjection, num_steps: int = 4, path: Path | None = None) -> list[float]:
    """The strengths of equal steps."""
    times = UniformGrid().times(num_steps).double()
    return schedule.strengths(linear_path() if path is None else path, times).tolist()


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (LinearReinjection(), [0.75, 0.5, 0.25, 0.0]),
        (LinearReinjection(0.2, 1.0), [0.4, 0.6, 0.8, 1.0]),
        (CosineReinjection(), [(1 + math.sqrt(0.5)) / 2, 0.5, (1 - math.sqrt(0.5)) / 2, 0.0]),
        (CosineReinjection(0.3, 0.3), [0.3] * 4),
        (early_reinjection(0.8), [0.8, 0.0, 0.0, 0.0]),
        (late_reinjection(0.8), [0.0, 0.8, 0.8, 0.0]),
        (WindowReinjection([0.1, 0.2, 0.3, 0.4], 0.25, 0.75), [0.1, 0.2, 0.0, 0.0]),
        (WindowReinjection(LinearReinjection(), 0.5, 1.0), [0.0, 0.5, 0.25, 0.0]),
        (AncestralReinjection(0.0), [0.0] * 4),
        (ChurnReinjection(100.0), [math.sqrt(0.5)] * 4),
        (ChurnReinjection(1.0), [math.sqrt(1 - 1 / 1.25**2)] * 4),
        (ChurnReinjection(1.0, 0.5, 1.0), [0.0, math.sqrt(1 - 1 / 1.25**2), 0.0, 0.0]),  # levels 2.4, 0.8, 0.27, 0
    ],
)
def test_strengths_at_equal_steps(schedule: TimedReinjection, expected: list[float]) -> None:
    assert strengths(schedule) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("num_steps", [1, 3, 8])
@pytest.mark.parametrize("split", [0.25, 0.5, 0.6])
def test_early_and_late_windows_part_the_steps_between_them(num_steps: int, split: float) -> None:
    early, late = (
        strengths(early_reinjection(0.7, split), num_steps),
        strengths(late_reinjection(0.7, split), num_steps),
    )
    assert [max(pair) for pair in zip(early, late, strict=True)][:-1] == [0.7] * (num_steps - 1)
    assert all(min(pair) == 0 for pair in zip(early, late, strict=True))


@each_path
@pytest.mark.parametrize("schedule", [LinearReinjection(0.9, 0.2), CosineReinjection(), early_reinjection(0.4)])
def test_a_strength_belongs_to_a_time_whatever_the_number_of_steps(path: Path, schedule: TimedReinjection) -> None:
    assert strengths(schedule, 8, path)[1::2] == pytest.approx(strengths(schedule, 4, path), abs=1e-12)


@each_path
@pytest.mark.parametrize("eta", [0.3, 1.0])
def test_ancestral_strengths_are_those_of_ddim_with_its_eta(path: Path, eta: float) -> None:
    """Equation 16 of DDIM in its own letters: a the share of signal variance, x / sqrt(alpha^2 + sigma^2) the state."""
    times = LogitNormalGrid().times(5).double()
    alpha, sigma = path.schedule.alpha(times), path.schedule.sigma(times)
    a = alpha**2 / (alpha**2 + sigma**2)
    ddim = eta * ((1 - a[1:-1]) / (1 - a[:-2])).sqrt() * (1 - a[:-2] / a[1:-1]).sqrt()
    gammas = AncestralReinjection(eta).strengths(path, times)
    torch.testing.assert_close(gammas[:-1] * (1 - a[1:-1]).sqrt(), ddim, rtol=1e-12, atol=1e-12)
    assert gammas[0] == eta


@each_path
@pytest.mark.parametrize(
    ("churn", "noise_min", "noise_max"), [(1.0, 0.0, math.inf), (40.0, 0.0, math.inf), (2.0, 0.3, 1.5)]
)
def test_churn_with_euler_is_edms_algorithm_2(path: Path, churn: float, noise_min: float, noise_max: float) -> None:
    """In EDM's own coordinates x / alpha and sigma / alpha, from the first state that has a signal on."""
    num_steps, grid = 6, LogitNormalGrid()
    times, model = grid.times(num_steps).double(), MixingModel(path)
    alpha, sigma = path.schedule.alpha(times), path.schedule.sigma(times)
    x = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    ours = FlowSampler(path, None, grid, ChurnReinjection(churn, noise_min, noise_max)).sample(
        model, x, num_steps=num_steps, start_step=1, generator=torch.Generator().manual_seed(2)
    )
    churned = sigma / alpha  # the levels at which the network is evaluated, t-hat in algorithm 2
    extra = min(churn / num_steps, math.sqrt(2) - 1)
    level = torch.where(
        (churned / (1 + extra) >= noise_min) & (churned / (1 + extra) <= noise_max), churned / (1 + extra), churned
    )
    generator, previous, y = torch.Generator().manual_seed(2), None, x / alpha[1]
    for k, state in enumerate(ours.states[:-1], 1):
        torch.testing.assert_close(state, alpha[k] * y, rtol=0, atol=1e-6)
        previous = model.denoise(alpha[k] * y, times[k].expand(2), self_cond=previous)
        y = y + (level[k + 1] - churned[k]) * (y - previous) / churned[k]
        if level[k + 1] < churned[k + 1]:
            xi = torch.randn(y.shape, generator=generator).double()
            y = y + (churned[k + 1] ** 2 - level[k + 1] ** 2).sqrt() * xi
    torch.testing.assert_close(ours.x_1, y, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LinearReinjection(1.5), "re-injection strength is 1.5"),
        (lambda: CosineReinjection(1.0, -0.1), "re-injection strength is -0.1"),
        (lambda: early_reinjection(2.0), "re-injection strength is 2.0"),
        (lambda: late_reinjection(0.5, 1.0), "window of time is 1.0 to 1.0: expected 0 <= begin < end <= 1"),
        (lambda: WindowReinjection(0.5, 0.7, 0.3), "window of time is 0.7 to 0.3"),
        (lambda: WindowReinjection(0.5, math.nan, 0.3), "window of time is nan"),
        (lambda: AncestralReinjection(1.1), "re-injection strength is 1.1"),
        (lambda: ChurnReinjection(-1.0), "churn is -1.0"),
        (lambda: ChurnReinjection(math.inf), "churn is inf"),
        (lambda: ChurnReinjection(1.0, 2.0, 1.0), "between noise levels 2.0 and 1.0"),
    ],
)
def test_numbers_out_of_range_are_named(make: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_a_list_inside_a_window_must_fit_the_steps() -> None:
    with pytest.raises(ValueError, match="2 re-injection strengths for 4 steps"):
        strengths(WindowReinjection([0.1, 0.2], 0.0, 1.0))


def test_the_strengths_reach_the_steps_they_belong_to() -> None:
    x_0 = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(3))
    schedule = LinearReinjection(0.9, 0.1)

    def end(rule: TimedReinjection) -> Tensor:
        sampler = FlowSampler(linear_path(), reinjection=rule)
        model = MixingModel(linear_path())
        return sampler.sample(model, x_0, num_steps=4, generator=torch.Generator().manual_seed(4)).x_1

    assert torch.equal(end(schedule), end(ListedReinjection([0.7, 0.5, 0.3, 0.1])))
    assert not torch.allclose(end(schedule), end(ConstantReinjection(0.5)))
    assert all(later < earlier for earlier, later in pairwise(strengths(schedule)))
