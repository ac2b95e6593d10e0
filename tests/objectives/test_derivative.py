"""Laws of forward-mode derivatives: closed form, difference quotients, their gradient, autocast, layer norm."""

from itertools import pairwise

import torch
from torch import Tensor

from fewstep.denoisers import FlowModel, RegressionDenoiser
from fewstep.objectives.derivative import estimate_and_change, forward_derivative
from fewstep.paths import linear_path
from tests.nn.builders import first, normal, randomised
from tests.objectives.toys import D, seed

T = torch.tensor([0.2, 0.5, 0.6], dtype=torch.float64)
STEP = 1e-3


def places(positions: int = 2) -> tuple[Tensor, Tensor]:
    """A state and its direction (B, K, D)."""
    generator = seed(0)
    return normal((3, positions, D), generator), normal((3, positions, D), generator)


def transformer() -> FlowModel:
    def build() -> RegressionDenoiser:
        return RegressionDenoiser(D, 4, width=8, depth=2, num_heads=2, two_times=True, max_frequency=4.0)

    return FlowModel(randomised(build, std=0.1), linear_path(), "velocity")


def test_difference_quotients_of_a_transformer_approach_it_with_the_square_of_the_step() -> None:
    model, mask, (x, v) = transformer(), first([4, 2, 3], 4), places(4)

    def estimate(h: float) -> Tensor:
        return model.denoise(x + h * v, T + h, s=T + 0.3, mask=mask).detach()

    value, change = estimate_and_change(model, x, v, T, T + 0.3, mask)
    torch.testing.assert_close(value.detach(), estimate(0.0), rtol=0, atol=1e-12)
    assert value.requires_grad and not change.requires_grad
    quotients = [(estimate(h) - estimate(-h)) / (2 * h) for h in (8e-3, 4e-3, 2e-3)]
    errors = [float((quotient - change)[mask].norm()) for quotient in quotients]
    assert errors[0] < 0.1 * float(change[mask].norm())
    for coarse, fine in pairwise(errors):
        assert 3.8 < coarse / fine < 4.2


def test_the_gradient_of_a_derivative_is_that_of_difference_quotients() -> None:
    """Torch's own forward-mode rule of layer norm fails this by 20 to 70 %."""
    model, (x, v) = transformer(), places(4)

    def estimate(y: Tensor, time: Tensor) -> Tensor:
        return model.denoise(y, time, s=T + 0.3)

    _, change = forward_derivative(estimate, (x, T), (v, torch.ones_like(T)))
    quotient = (estimate(x + STEP * v, T + STEP) - estimate(x - STEP * v, T - STEP)) / (2 * STEP)
    ours, theirs = (
        torch.autograd.grad(result.square().mean(), list(model.parameters()), allow_unused=True)
        for result in (change, quotient)
    )
    assert any(slope is not None and float(slope.norm()) > 1e-3 for slope in ours)
    for slope, other in zip(ours, theirs, strict=True):
        assert (slope is None) == (other is None)
        if slope is not None and other is not None:
            assert float((other - slope).norm()) < 1e-3 * float(slope.norm()) + 1e-5


def test_derivatives_are_taken_in_float32_under_autocast() -> None:
    layer, (x, _) = torch.nn.Linear(D, D), places()
    plain = forward_derivative(lambda y: layer(y).sin(), (x.float(),), (x.float(),))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer(x.float()).dtype == torch.bfloat16
        half = forward_derivative(lambda y: layer(y).sin(), (x.float(),), (x.float(),))
    assert all(other.dtype == torch.float32 and torch.equal(one, other) for one, other in zip(plain, half, strict=True))
