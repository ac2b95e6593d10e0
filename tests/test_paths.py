"""Laws of the path: conversions are inverses, the velocity is the derivative, the ends stay finite."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fewstep.paths import Path, linear_path, variance_preserving_path

PATHS = [linear_path(), variance_preserving_path()]
each_path = pytest.mark.parametrize("path", PATHS, ids=["linear", "variance_preserving"])
inner_times = st.lists(st.floats(0.01, 0.99), min_size=1, max_size=4)


def _pair(batch: int, seed: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x_1, x_0 = torch.randn(2, batch, 3, 2, generator=generator, dtype=torch.float64).to(dtype)
    return x_1, x_0


@each_path
@settings(max_examples=50, deadline=None)
@given(times=inner_times, seed=st.integers(0, 2**31))
def test_the_state_and_data_or_velocity_give_the_others(path: Path, times: list[float], seed: int) -> None:
    t = torch.tensor(times, dtype=torch.float64)
    x_1, x_0 = _pair(len(times), seed)
    x_t, v = path.sample(x_1, x_0, t), path.velocity(x_1, x_0, t)
    pairs = [
        (path.x1_from_velocity(x_t, v, t), x_1),
        (path.eps_from_x1(x_t, x_1, t), x_0),
        (path.velocity_from_x1(x_t, x_1, t), v),
    ]
    for result, expected in pairs:
        torch.testing.assert_close(result, expected, rtol=1e-10, atol=1e-10)


@each_path
def test_velocity_is_the_time_derivative_of_the_state(path: Path) -> None:
    x_1, x_0 = _pair(9, 0)
    t = torch.linspace(0, 1, 9, dtype=torch.float64)
    _, derivative = torch.func.jvp(lambda t: path.sample(x_1, x_0, t), (t,), (torch.ones_like(t),))
    torch.testing.assert_close(path.velocity(x_1, x_0, t), derivative, rtol=1e-12, atol=1e-12)


@each_path
def test_a_path_goes_from_the_noise_to_the_data_exactly_and_the_velocity_gives_these_at_both_ends(path: Path) -> None:
    x_1, x_0 = _pair(2, 1, torch.float32)
    for t, state in ((torch.zeros(2), x_0), (torch.ones(2), x_1)):
        assert torch.equal(path.sample(x_1, x_0, t), state)
        estimate = path.x1_from_velocity(state, path.velocity(x_1, x_0, t), t)
        torch.testing.assert_close(estimate, x_1, rtol=1e-6, atol=1e-6)


@each_path
def test_the_singular_end_gives_finite_values_and_vanishes_for_consistent_input(path: Path) -> None:
    x_1, x_0 = _pair(2, 3, torch.float32)
    data = torch.ones(2)
    assert torch.equal(path.eps_from_x1(x_1, x_1, data), torch.zeros_like(x_1))
    assert torch.isfinite(path.velocity_from_x1(x_0, x_1, data)).all()


@each_path
def test_half_types_are_computed_in_float32(path: Path) -> None:
    x_1, x_0 = _pair(4, 4, torch.bfloat16)
    t = torch.tensor([0.1, 0.4, 0.6, 0.9])
    for function in (path.sample, path.velocity, path.eps_from_x1, path.velocity_from_x1, path.x1_from_velocity):
        assert function(x_1, x_0, t).dtype == torch.float32
        assert torch.equal(function(x_1, x_0, t), function(x_1.float(), x_0.float(), t))
