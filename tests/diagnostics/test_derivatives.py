"""Jacobian products against the whole Jacobian, in every gradient mode."""

from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest
import torch
from torch import Tensor, nn

from fewstep.diagnostics import directional, pullback, value_and_gradient
from tests.diagnostics.decoders import ConstantReadout, SmoothReadout, normal

MODES = [torch.enable_grad, torch.no_grad, torch.inference_mode]


@pytest.mark.parametrize("mode", MODES)
def test_products_are_those_of_the_whole_jacobian_in_every_gradient_mode(
    mode: Callable[[], AbstractContextManager[None]],
) -> None:
    decode = SmoothReadout(6, 2, 5)
    jacobian = torch.func.jacrev(decode)(normal(1, 6))[0, :, :, 0]
    with mode():
        z, u, w = normal(1, 6), normal(1, 6, seed=1), normal(1, 2, 5, seed=2)  # inference tensors in the last mode
        value, forward = directional(decode, z, u)
        back = pullback(decode, z, w)
    torch.testing.assert_close(value, decode(normal(1, 6)))
    torch.testing.assert_close(forward[0], jacobian @ normal(6, seed=1))
    torch.testing.assert_close(back[0], torch.einsum("lvn,lv->n", jacobian, normal(2, 5, seed=2)))
    assert not (value.requires_grad or forward.requires_grad or back.requires_grad)
    assert not (value.is_inference() or forward.is_inference() or back.is_inference())  # fit for further autograd


def test_products_pass_through_attention_and_leave_no_gradient_on_parameters() -> None:
    project = nn.Linear(8, 8).double()

    def attend(x: Tensor) -> Tensor:
        heads = project(x)[:, None]
        return nn.functional.scaled_dot_product_attention(heads, heads, heads)[:, 0]

    x, u, w = normal(2, 5, 8), normal(2, 5, 8, seed=1), normal(2, 5, 8, seed=2)
    torch.testing.assert_close((directional(attend, x, u)[1] * w).sum(), (pullback(attend, x, w) * u).sum())
    value_and_gradient(lambda z: attend(z).flatten(1).sum(1), x)
    assert project.weight.grad is None
    assert x.grad is None


def test_gradients_of_all_examples_come_from_one_pass() -> None:
    x = normal(4, 3)
    value, gradient = value_and_gradient(lambda z: z.pow(3).sum(1), x)
    torch.testing.assert_close(value, x.pow(3).sum(1))
    torch.testing.assert_close(gradient, 3 * x.square())


def test_a_constant_has_zero_products() -> None:
    decode, z = ConstantReadout(normal(2, 5)), normal(3, 6)
    assert not directional(decode, z, z)[1].any()
    assert not pullback(decode, z, normal(3, 2, 5)).any()


def test_products_follow_autocast() -> None:
    layer = nn.Linear(6, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value, forward = directional(layer, normal(3, 6, dtype=torch.float32), normal(3, 6, dtype=torch.float32))
    assert value.dtype == forward.dtype == torch.bfloat16


def test_a_vector_of_the_wrong_shape_is_refused() -> None:
    with pytest.raises(ValueError, match=r"u has shape \(3, 5\)"):
        directional(torch.sin, normal(3, 6), normal(3, 5))
    with pytest.raises(ValueError, match=r"w has shape \(3, 5\)"):
        pullback(torch.sin, normal(3, 6), normal(3, 5))
