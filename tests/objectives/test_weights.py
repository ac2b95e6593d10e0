"""Laws of weights: the closed form of the adaptive one; Fisher nats are e'Ge/2 and the divergence to second order."""

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from fewstep.objectives import AdaptiveWeight
from fewstep.objectives.weights import fisher_nats
from fewstep.readouts import LinearReadout, ParallelReadout, TransformerReadout
from fewstep.shapes import masked_mean
from tests.nn.builders import first, normal, randomised

V, D, K = 5, 2, 3
MASK = first([3, 2, 1], K)


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
def test_the_adaptive_weight_is_its_closed_form_without_a_gradient(power: float) -> None:
    error = torch.tensor([0.0, 0.1, 4.0], dtype=torch.float64, requires_grad=True)
    weight = AdaptiveWeight(power, floor=0.01)(error)
    torch.testing.assert_close(weight, 1 / (error.detach() + 0.01) ** power)
    assert not weight.requires_grad
    (gradient,) = torch.autograd.grad((weight * error).sum(), error)
    torch.testing.assert_close(gradient, weight)


@pytest.mark.parametrize(("power", "floor"), [(-0.1, 1e-3), (1.0, 0.0), (0.5, -1.0)])
def test_settings_out_of_range_are_refused(power: float, floor: float) -> None:
    with pytest.raises(ValueError, match="expected power"):
        AdaptiveWeight(power, floor)


@pytest.mark.parametrize("stride", [1, 2])
def test_fisher_nats_are_half_the_quadratic_form_of_the_explicit_matrix(
    stride: int, generator: torch.Generator
) -> None:
    readout = randomised(lambda: LinearReadout(V, D, stride=stride))
    x_1, error = normal((3, K, D), generator), normal((3, K, D), generator)
    p = readout(x_1, MASK).softmax(-1).reshape(3, K, stride, V)
    jacobian = readout.outputs.weight.reshape(stride, V, D)
    matrix = torch.diag_embed(p) - p[..., :, None] * p[..., None, :]
    moved = torch.einsum("svd,bkd->bksv", jacobian, error)
    nats = torch.einsum("bksv,bksvw,bksw->bks", moved, matrix, moved) / 2
    expected = masked_mean(nats.reshape(3, K * stride), MASK.repeat_interleave(stride, 1))
    torch.testing.assert_close(fisher_nats(readout, x_1, error, MASK), expected, rtol=1e-6, atol=1e-9)


def readouts() -> list[ParallelReadout]:
    return [
        randomised(lambda: LinearReadout(V, D, stride=2)),
        randomised(lambda: TransformerReadout(V, D, stride=2, width=8, depth=1, num_heads=2)),
    ]


@pytest.mark.parametrize("which", [0, 1], ids=["linear", "transformer"])
def test_fisher_nats_are_the_divergence_of_the_tokens_to_second_order(which: int, generator: torch.Generator) -> None:
    readout = readouts()[which]
    x_1, direction = normal((3, K, D), generator), normal((3, K, D), generator) * MASK[..., None]

    def gap(size: float) -> Tensor:
        """KL minus Fisher nats, (B,)."""
        before, after = (readout(z, MASK).log_softmax(-1) for z in (x_1, x_1 + size * direction))
        divergence = (before.exp() * (before - after)).sum(-1)
        return masked_mean(divergence, readout.token_mask(MASK)) - fisher_nats(readout, x_1, size * direction, MASK)

    gaps = [gap(size).abs() for size in (1e-2, 5e-3, 2.5e-3)]
    assert (gaps[0] < 0.2 * fisher_nats(readout, x_1, 1e-2 * direction, MASK)).all()
    for coarse, fine in pairwise(gaps):
        assert ((coarse / fine > 6) & (coarse / fine < 10)).all(), "the rest is of third order"


def test_the_gradient_flows_to_the_error_alone_and_is_that_of_the_quadratic_form(generator: torch.Generator) -> None:
    readout = readouts()[1]
    x_1, error = (normal((3, K, D), generator).requires_grad_() for _ in range(2))
    nats = fisher_nats(readout, x_1, error, MASK).sum()
    (gradient,) = torch.autograd.grad(nats, error, retain_graph=True)
    # A quadratic form: e . gradient is twice its value.
    torch.testing.assert_close((gradient * error).sum(), 2 * nats, rtol=1e-6, atol=1e-9)
    assert torch.autograd.grad(nats, x_1, allow_unused=True) == (None,)


def test_errors_at_padding_cost_nothing(generator: torch.Generator) -> None:
    readout = readouts()[1]
    x_1, error = normal((3, K, D), generator), normal((3, K, D), generator)
    junk = torch.where(MASK[..., None], error, 50.0)
    torch.testing.assert_close(fisher_nats(readout, x_1, junk, MASK), fisher_nats(readout, x_1, error, MASK))
