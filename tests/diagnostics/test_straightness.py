"""Laws of curvature: zero on a jump, the closed form of a Gaussian flow, padding, what is refused."""

import pytest
import torch
from torch import Tensor

from fewstep.diagnostics.straightness import curvature
from fewstep.paths import Path, linear_path, variance_preserving_path
from tests.diagnostics.processes import normal, plain, seeded

each_path = pytest.mark.parametrize("path", [linear_path(), variance_preserving_path()], ids=["linear", "vp"])


def on_path(path: Path, x_1: Tensor, x_0: Tensor, times: list[float]) -> list[tuple[float, Tensor]]:
    return [(t, path.sample(x_1, x_0, x_0.new_full((len(x_0),), t))) for t in times]


@each_path
def test_it_is_zero_where_the_pair_is_the_same_all_along_whatever_the_steps(path: Path) -> None:
    states = on_path(path, normal(4, 3, 2), normal(4, 3, 2, seed=1), [0.0, 0.1, 0.7, 1.0])
    result = curvature(states, path, generator=seeded())
    assert result.total.value == pytest.approx(0, abs=1e-12) and result.total.num_examples == 4
    assert plain(result)["times"] == pytest.approx([0.05, 0.4, 0.85])


@pytest.mark.parametrize("scale", [0.5, 3.0])
def test_a_gaussian_flow_has_its_closed_form(scale: float) -> None:
    # x_t = x_0 sqrt((1 - t)^2 + (scale t)^2): the integral of (dx/dt - (x_1 - x_0))^2 over (x_1 - x_0)^2.
    times = torch.linspace(0, 1, 401, dtype=torch.float64)
    size = ((1 - times).square() + (scale * times).square()).sqrt()
    x_0 = normal(5, 1, 2)
    result = curvature(
        [(float(t), s * x_0) for t, s in zip(times, size, strict=True)], linear_path(), generator=seeded()
    )
    fine = (torch.arange(200_000, dtype=torch.float64) + 0.5) / 200_000
    speed = (scale**2 * fine - (1 - fine)) / ((1 - fine).square() + (scale * fine).square()).sqrt()
    exact = float(((speed - (scale - 1)) / (scale - 1)).square().mean())
    assert result.total.value == pytest.approx(exact, rel=1e-3)
    assert sum(one.value for one in result.values) / 400 == pytest.approx(result.total.value, rel=1e-9)


def test_padding_and_its_values_do_not_count() -> None:
    x_0, x_1, bent = normal(3, 4, 2), normal(3, 4, 2, seed=1), normal(3, 4, 2, seed=2)
    mask = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1], [1, 0, 0, 0]]).bool()
    states = [(0.0, x_0), (0.5, bent), (1.0, x_1)]
    junk = [(t, torch.where(mask[..., None], x, 100.0 * t)) for t, x in states]
    one, other = (curvature(each, linear_path(), mask=mask, generator=seeded()).total for each in (states, junk))
    assert one.value == pytest.approx(other.value, rel=1e-12) and one.value > 0


@pytest.mark.parametrize("times", [[0.0], [0.0, 0.5], [0.1, 1.0], [0.0, 0.5, 0.5, 1.0]])
def test_states_that_do_not_go_from_noise_to_data_are_refused(times: list[float]) -> None:
    with pytest.raises(ValueError, match="from 0 to 1"):
        curvature([(t, normal(2, 3)) for t in times], linear_path(), generator=seeded())
