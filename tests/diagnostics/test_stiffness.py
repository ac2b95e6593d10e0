"""Stiffness against the full Jacobian: closed forms, its decomposition, finite differences."""

import pytest
import torch
from torch import Tensor, nn

from fewstep.diagnostics.stiffness import stiffness
from fewstep.paths import Path, linear_path, variance_preserving_path
from tests.diagnostics.processes import Mixture, normal, plain, seeded

each_path = pytest.mark.parametrize("path", [linear_path(), variance_preserving_path()], ids=["linear", "vp"])


def _finite_difference_jacobian(velocity, x: Tensor, t: Tensor, h: float) -> Tensor:
    """d v / d x (B, n, n) by central differences, for x (B, n)."""
    columns = [
        (velocity(x + h * e, t) - velocity(x - h * e, t)) / (2 * h) for e in torch.eye(x.shape[1], dtype=x.dtype)
    ]
    return torch.stack(columns, -1)


def _largest(jacobian: Tensor) -> Tensor:
    return torch.linalg.svdvals(jacobian)[:, 0]


def test_a_linear_velocity_has_its_largest_singular_value_not_its_largest_eigenvalue() -> None:
    shear = torch.tensor([[1.0, 10.0], [0.0, 1.0]], dtype=torch.float64)
    result = stiffness(lambda x, t: x @ shear.T, [(0.5, normal(4, 2))], generator=seeded())
    assert result.values[0].value == pytest.approx(float(torch.linalg.svdvals(shear)[0]), rel=1e-9)
    assert result.peak.value == result.values[0].value


def test_a_diagonal_velocity_gives_its_largest_scale_for_each_example_by_itself() -> None:
    scales = torch.tensor([[1.0, -5.0, 2.0], [0.5, 0.1, 0.2]], dtype=torch.float64)
    result = stiffness(lambda x, t: x * scales, [(0.1, normal(2, 3))], num_iterations=40, generator=seeded())
    assert result.values[0].value == pytest.approx((5 + 0.5) / 2, rel=1e-4)
    assert result.values[0].num_examples == 2
    assert result.values[0].interval.low == pytest.approx(0.5, rel=1e-3)


@each_path
@pytest.mark.parametrize("spread", [0.0, 0.3])
def test_the_flow_of_a_gaussian_mixture_agrees_with_its_closed_form_and_finite_differences(
    path: Path, spread: float
) -> None:
    mixture = Mixture(path, normal(6, 5), spread)
    times = (0.1, 0.5, 0.8, 0.95)
    x_1, x_0 = mixture.centres[[0, 1, 2, 3]] + spread * normal(4, 5, seed=1), normal(4, 5, seed=2)
    states = []
    for time in times:
        t = torch.full((4,), time)
        states.append((time, path.sample(x_1, x_0, t)))
    result = stiffness(mixture.velocity, states, num_iterations=200, generator=seeded())
    exact, differences = [], []
    for time, x_t in states:
        t = torch.full((4,), time)
        exact.append(float(_largest(mixture.velocity_jacobian(x_t, t)).mean()))
        differences.append(float(_largest(_finite_difference_jacobian(mixture.velocity, x_t, t, 1e-5)).mean()))
    assert differences == pytest.approx(exact, rel=1e-6)
    assert [one.value for one in result.values] == pytest.approx(exact, rel=5e-3)
    assert all(one.value <= limit * (1 + 1e-9) for one, limit in zip(result.values, exact, strict=True))
    assert result.peak.value == max(one.value for one in result.values)
    assert result.peak_time == times[max(range(4), key=exact.__getitem__)]
    assert result.rows()[0].name == "stiffness_peak"
    plain(result)


def test_more_iterations_only_raise_the_value_towards_the_largest_singular_value() -> None:
    matrix = normal(30, 30)
    values = [
        stiffness(lambda x, t: x @ matrix.T, [(0.5, normal(3, 30))], num_iterations=num, generator=seeded())
        for num in (1, 3, 10, 100)
    ]
    found = [one.values[0].value for one in values]
    assert found == sorted(found) and found[0] < 0.95 * found[-1]
    assert found[-1] <= float(torch.linalg.svdvals(matrix)[0]) * (1 + 1e-12)
    assert found[-1] == pytest.approx(float(torch.linalg.svdvals(matrix)[0]), rel=2e-2)
    assert values[0].last_growth == 1 and values[-1].last_growth < 1e-3


class _Attending(nn.Module):
    """A small attention network in float32, told the time."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(4, 12)
        generator = seeded(5)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(2 * torch.randn(parameter.shape, generator=generator))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """(B, K, 4)."""
        q, k, v = self.mix(x * t[:, None, None]).unsqueeze(1).chunk(3, -1)
        return x + nn.functional.scaled_dot_product_attention(q, k, v)[:, 0]


def test_an_attention_network_in_float32_agrees_with_finite_differences() -> None:
    network, x = _Attending(), normal(3, 5, 4, dtype=torch.float32)
    result = stiffness(network, [(0.3, x)], num_iterations=200, generator=seeded())

    def flat(x: Tensor, t: Tensor) -> Tensor:
        return network.double()(x.unflatten(1, (5, 4)), t).flatten(1)

    with torch.no_grad():
        jacobian = _finite_difference_jacobian(flat, x.double().flatten(1), torch.full((3,), 0.3), 1e-5)
    assert result.values[0].value == pytest.approx(float(_largest(jacobian).mean()), rel=5e-3)


def test_it_works_in_every_gradient_mode_and_leaves_no_gradient_behind() -> None:
    network, x = _Attending(), normal(3, 5, 4, dtype=torch.float32)
    plainly = stiffness(network, [(0.3, x), (0.6, 2 * x)], generator=seeded())
    with torch.no_grad():
        assert stiffness(network, [(0.3, x), (0.6, 2 * x)], generator=seeded()) == plainly
    with torch.inference_mode():
        assert stiffness(network, [(0.3, x.clone()), (0.6, 2 * x)], generator=seeded()) == plainly
    assert all(parameter.grad is None and parameter.requires_grad for parameter in network.parameters())


@pytest.mark.parametrize("velocity", [lambda x, t: torch.ones_like(x), lambda x, t: 0 * x], ids=["constant", "zero"])
def test_a_velocity_that_ignores_the_state_has_stiffness_0(velocity) -> None:
    result = stiffness(velocity, [(0.0, normal(2, 3)), (1.0, normal(2, 3))], generator=seeded())
    assert [one.value for one in result.values] == [0, 0]
    assert result.peak.value == 0 and result.last_growth == 0
    plain(result)


def test_a_velocity_that_is_not_finite_is_undetermined_not_nan() -> None:
    def velocity(x: Tensor, t: Tensor) -> Tensor:
        return x * (torch.nan if float(t[0]) == 1 else 2.0)

    result = stiffness(velocity, [(0.5, normal(2, 3)), (1.0, normal(2, 3))], generator=seeded())
    assert result.values[0].value == pytest.approx(2)
    assert result.values[1].value is None and result.peak.value is None and result.peak_time is None
    assert result.picture().series[0].x == (0.5,)
    plain(result)


def test_bad_arguments_are_named() -> None:
    for states, num_iterations in (
        ([], 5),
        ([(0.1, normal(2, 3))], 0),
        ([(0.1, normal(2, 3)), (0.2, normal(3, 3))], 5),
    ):
        with pytest.raises(ValueError, match="expected at least 1 iteration and at least 1 state"):
            stiffness(lambda x, t: x, states, num_iterations=num_iterations, generator=seeded())
