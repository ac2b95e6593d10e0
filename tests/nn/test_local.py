"""Laws of mixing close neighbours: the sum that it is, and its derivatives of every kind."""

import pytest
import torch
from torch import Tensor

from fewstep.nn import LocalMixing
from tests.nn.builders import first, normal, randomised


def plainly(x: Tensor, weight: Tensor) -> Tensor:
    """sum_s w_s x_(n + s - reach), element by element."""
    reach, length = len(weight) // 2, x.shape[1]
    rows = []
    for n in range(length):
        terms = [weight[s] * x[:, n + s - reach] for s in range(len(weight)) if 0 <= n + s - reach < length]
        rows.append(torch.stack(terms).sum(0))
    return torch.stack(rows, 1)


@pytest.mark.parametrize("reach", [0, 1, 2, 4])
@pytest.mark.parametrize("length", [1, 2, 3, 7])
def test_mixing_is_the_weighted_sum_of_the_neighbours_and_so_are_its_gradients(
    reach: int, length: int, generator: torch.Generator
) -> None:
    mixing = randomised(lambda: LocalMixing(3, reach))
    x, weights = normal((2, length, 3), generator).requires_grad_(), normal((2, length, 3), generator)
    ours, theirs = mixing(x), plainly(x, mixing.weight)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)
    leaves = (x, mixing.weight)
    slopes = (torch.autograd.grad((y * weights).sum(), leaves) for y in (ours, theirs))
    for one, other in zip(*slopes, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


@pytest.mark.parametrize("length", [1, 5])
def test_it_can_be_differentiated_forward_backward_and_twice(length: int, generator: torch.Generator) -> None:
    mixing = randomised(lambda: LocalMixing(2, 2))
    x = normal((2, length, 2), generator).requires_grad_()
    call = lambda x, w: torch.func.functional_call(mixing, {"weight": w}, (x,)).sin()  # noqa: E731
    inputs = (x, mixing.weight)
    assert torch.autograd.gradcheck(call, inputs, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(call, inputs, check_fwd_over_rev=True, check_rev_over_rev=True)


def test_the_gradient_of_a_forward_mode_derivative_is_right(generator: torch.Generator) -> None:
    mixing = randomised(lambda: LocalMixing(3, 2))
    x, along = normal((2, 5, 3), generator), normal((2, 5, 3), generator)

    def squared_tangent(mix: object) -> Tensor:
        return torch.func.jvp(lambda z: mix(z).sin(), (x,), (along,))[1].square().sum()

    (ours,) = torch.autograd.grad(squared_tangent(mixing), mixing.weight)
    (theirs,) = torch.autograd.grad(squared_tangent(lambda z: plainly(z, mixing.weight)), mixing.weight)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-10)


def test_padding_counts_as_zero(generator: torch.Generator) -> None:
    mixing, x = randomised(lambda: LocalMixing(3, 2)), normal((2, 6, 3), generator)
    mixed = mixing(x, first([4, 6], 6))
    torch.testing.assert_close(mixed[0, :4], mixing(x[:1, :4])[0], rtol=0, atol=1e-12)
    assert torch.equal(mixed[1], mixing(x)[1])
