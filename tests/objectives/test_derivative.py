"""Laws of derivatives along a direction: both ways agree, to order 2; the total derivative is along the trajectory."""

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from fewstep.denoisers import FlowModel, RegressionDenoiser
from fewstep.objectives import Derivative, FiniteDifference, ForwardMode
from fewstep.objectives.derivative import scaled, total_derivative
from fewstep.paths import linear_path
from tests.nn.builders import first, normal, randomised
from tests.objectives.maps import D, ExactMap

both_ways = pytest.mark.parametrize("derivative", [ForwardMode(), FiniteDifference(1e-3)], ids=["forward", "finite"])


def smooth(x: Tensor, t: Tensor) -> Tensor:
    return torch.sin(x * t[:, None, None]) + t[:, None, None] ** 3


def places(generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """x and its direction (B, K, D), and t (B,)."""
    t = torch.rand(3, generator=generator, dtype=torch.float64)
    return normal((3, 2, D), generator), normal((3, 2, D), generator), t


@both_ways
def test_the_derivative_along_a_direction_is_that_of_the_closed_form(
    derivative: Derivative, generator: torch.Generator
) -> None:
    x, u, t = places(generator)
    value, change = derivative(smooth, (x, t), (u, torch.full_like(t, 2.0)))
    time = t[:, None, None]
    exact = torch.cos(x * time) * (u * time + 2 * x) + 6 * time**2
    assert torch.equal(value, smooth(x, t))
    torch.testing.assert_close(change, exact, rtol=0, atol=1e-12 if isinstance(derivative, ForwardMode) else 1e-4)


def network() -> FlowModel:
    def build() -> RegressionDenoiser:
        return RegressionDenoiser(D, 4, width=8, depth=2, num_heads=2, two_times=True, max_frequency=4.0)

    return FlowModel(randomised(build, std=0.1), linear_path(), "velocity")


def test_finite_differences_of_a_transformer_come_to_forward_mode_with_the_square_of_the_step(
    generator: torch.Generator,
) -> None:
    model, mask = network(), first([4, 2, 3], 4)
    x, v = normal((3, 4, D), generator), normal((3, 4, D), generator)
    t = torch.tensor([0.2, 0.5, 0.6], dtype=torch.float64)

    def change(derivative: Derivative) -> Tensor:
        def estimate(x_t: Tensor, time: Tensor, end: Tensor | None) -> Tensor:
            return model.denoise(x_t, time, s=end, mask=mask)

        return total_derivative(derivative, estimate, x, v, t, t + 0.3)[1][mask].detach()

    exact = change(ForwardMode())
    errors = [float((change(FiniteDifference(step)) - exact).norm()) for step in (8e-3, 4e-3, 2e-3)]
    assert errors[0] < 0.1 * float(exact.norm())
    for coarse, fine in pairwise(errors):
        assert 3.8 < coarse / fine < 4.2


def test_the_gradient_of_a_derivative_is_the_same_both_ways(generator: torch.Generator) -> None:
    model = network()
    x, v = normal((3, 4, D), generator), normal((3, 4, D), generator)
    t = torch.tensor([0.2, 0.5, 0.6], dtype=torch.float64)

    def gradients(derivative: Derivative) -> list[Tensor]:
        _, change = derivative(lambda y, time: model.denoise(y, time, s=t + 0.3), (x, t), (v, torch.ones_like(t)))
        return list(torch.autograd.grad(change.square().mean(), list(model.parameters()), allow_unused=True))

    pairs = list(zip(gradients(ForwardMode()), gradients(FiniteDifference(1e-3)), strict=True))
    assert any(one is not None and float(one.norm()) > 1e-3 for one, _ in pairs)
    for one, other in pairs:
        assert (one is None) == (other is None)
        if one is not None:
            assert float((other - one).norm()) < 1e-3 * float(one.norm()) + 1e-5


@both_ways
def test_the_end_of_a_jump_stays_where_it_is_along_the_exact_flow(
    derivative: Derivative, generator: torch.Generator
) -> None:
    path = linear_path()
    exact = ExactMap(path, "x1")
    x, _, _ = places(generator)
    t, s = (torch.tensor(times, dtype=torch.float64) for times in ([0.1, 0.4, 0.7], [0.3, 0.8, 1.0]))
    velocity = exact.exact.velocity_of(x, exact.exact.denoise(x, t), t)
    _, change = total_derivative(derivative, lambda y, time, end: exact.jump(y, time, end), x, velocity, t, s)
    torch.testing.assert_close(change, torch.zeros_like(change), rtol=0, atol=1e-5)
    _, other = total_derivative(derivative, lambda y, time, end: exact.jump(y, time, end), x, 1.1 * velocity, t, s)
    assert other.abs().max() > 1e-2


def test_without_an_end_the_function_is_given_none(generator: torch.Generator) -> None:
    x, v, t = places(generator)
    seen: list[object] = []

    def f(y: Tensor, time: Tensor, end: Tensor | None) -> Tensor:
        seen.append(end)
        return smooth(y, time)

    change = total_derivative(ForwardMode(), f, x, v, t, None)[1]
    assert seen == [None]
    torch.testing.assert_close(change, ForwardMode()(smooth, (x, t), (v, torch.ones_like(t)))[1])


@both_ways
def test_derivatives_are_taken_in_float32_under_autocast(derivative: Derivative, generator: torch.Generator) -> None:
    layer = torch.nn.Linear(D, D)
    x = normal((3, 2, D), generator).float()
    plain = derivative(lambda y: layer(y).sin(), (x,), (x,))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16
        half = derivative(lambda y: layer(y).sin(), (x,), (x,))
    for one, other in zip(plain, half, strict=True):
        assert other.dtype == torch.float32 and torch.equal(one, other)


def test_one_number_an_example_scales_all_of_its_entries(generator: torch.Generator) -> None:
    x, _, t = places(generator)
    torch.testing.assert_close(scaled(t, x), torch.stack([t[b] * x[b] for b in range(3)]))


@pytest.mark.parametrize("step", [0.0, -1e-3, 0.2])
def test_a_step_out_of_range_is_refused(step: float) -> None:
    with pytest.raises(ValueError, match="expected a difference of times"):
        FiniteDifference(step)


@pytest.mark.parametrize("affine", [True, False])
def test_layer_norm_written_out_is_layer_norm(affine: bool, generator: torch.Generator) -> None:
    norm = randomised(lambda: torch.nn.LayerNorm(D, elementwise_affine=affine))
    x, u, _ = places(generator)
    value, change = ForwardMode()(norm, (x,), (u,))
    torch.testing.assert_close(value, norm(x), rtol=0, atol=1e-12)
    torch.testing.assert_close(change, torch.func.jvp(norm, (x,), (u,))[1], rtol=0, atol=1e-9)
