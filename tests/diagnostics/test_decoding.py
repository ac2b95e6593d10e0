"""Jacobian products against the whole Jacobian, and decoders that are asked for a few examples at a time."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fewstep.diagnostics.boundary import normal_boundary, segment_boundary, segment_points, worst_direction
from fewstep.diagnostics.cci import cci
from fewstep.diagnostics.dabi import dabi
from fewstep.diagnostics.decoding import DecodeInParts, directional, pullback
from fewstep.diagnostics.displacement import dabi_flip, noise_robustness, reconstruction_error, token_accuracy
from fewstep.diagnostics.first_failure import first_failure
from fewstep.diagnostics.margins import boundary_distance, margins
from fewstep.diagnostics.response import CATEGORICAL, CONTINUOUS
from tests.diagnostics.decoders import ParallelConditionals, SmoothReadout, normal

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
        back = pullback(decode, z, w)[1]
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
    torch.testing.assert_close((directional(attend, x, u)[1] * w).sum(), (pullback(attend, x, w)[1] * u).sum())
    value, gradient = pullback(lambda z: z.pow(3).sum(1), normal(4, 3))
    torch.testing.assert_close((value, gradient), (normal(4, 3).pow(3).sum(1), 3 * normal(4, 3).square()))
    assert project.weight.grad is None
    assert x.grad is None


EXAMPLES, TOKENS, VOCABULARY, N = 5, 4, 32, 6
"""An example's logits fill whole vectors of the processor: what is left over would be computed in another way."""
Z = normal(EXAMPLES, N, seed=4)
IDS = torch.randint(VOCABULARY, (EXAMPLES, TOKENS), generator=torch.Generator().manual_seed(0))
POSITIONS = torch.tensor([[0, 2], [1, 0], [2, 1], [0, 1], [1, 2]])


class RowByRow:
    """A readout of one example at a time, so that no kernel sees how many there are."""

    def __init__(self) -> None:
        self.inner = SmoothReadout(N, TOKENS, VOCABULARY)
        self.largest = 0

    def __call__(self, z: Tensor, shift: Tensor | None = None) -> Tensor:
        self.largest = max(self.largest, len(z))
        logits = torch.cat([self.inner(row[None]) for row in z])
        return logits if shift is None else logits + shift[:, None, None] * torch.arange(VOCABULARY)


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(1)


def of_points(points: Callable[[Any], Any], response: Any) -> Callable[[Any], Any]:
    return lambda decode: dabi(decode, response, points(decode), rms=1.0, num_isotropic=2, generator=generator())


def worst(decode: Any, response: Any) -> Any:
    points = segment_boundary(decode, Z, Z.roll(1, 0), POSITIONS)
    return worst_direction(decode, response, points, num_iterations=3, generator=generator())


QUESTIONS: dict[str, Callable[[Any], Any]] = {
    "normal": of_points(lambda decode: normal_boundary(decode, Z, POSITIONS), CATEGORICAL),
    "segment": of_points(lambda decode: segment_boundary(decode, Z, Z.roll(1, 0), POSITIONS), CATEGORICAL),
    "worst": of_points(lambda decode: worst(decode, CATEGORICAL), CATEGORICAL),
    "continuous": of_points(lambda decode: segment_points(Z, Z.roll(1, 0), "midpoint"), CONTINUOUS),
    "worst continuous": of_points(lambda decode: worst(decode, CONTINUOUS), CONTINUOUS),
    "flip": lambda decode: dabi_flip(decode, Z, POSITIONS, margins(decode, Z, POSITIONS), generator=generator()),
    "first failure": lambda decode: first_failure(
        decode, Z, POSITIONS, margins(decode, Z, POSITIONS), generator=generator()
    ),
    "distance": lambda decode: boundary_distance(margins(decode, Z, POSITIONS), Z, generator=generator()),
    "robustness": lambda decode: noise_robustness(
        decode, Z, IDS, POSITIONS, margins(decode, Z, POSITIONS), generator=generator()
    ),
    "accuracy": lambda decode: token_accuracy(decode, Z, IDS, generator=generator()),
    "reconstruction": lambda decode: reconstruction_error(
        decode, Z, normal(EXAMPLES, TOKENS, VOCABULARY, seed=9), generator=generator()
    ),
}


@pytest.mark.parametrize("name", QUESTIONS)
@pytest.mark.parametrize("at_once", [1, 2])
def test_the_figures_are_equal_to_the_last_bit_and_no_more_than_the_part_is_asked_for(name: str, at_once: int) -> None:
    whole, parted = RowByRow(), RowByRow()
    assert QUESTIONS[name](DecodeInParts(parted, at_once)) == QUESTIONS[name](whole)
    assert (whole.largest, parted.largest) == (EXAMPLES, at_once)


def test_what_belongs_to_an_example_goes_with_it() -> None:
    shift = torch.arange(EXAMPLES, dtype=torch.float64)
    whole, parted = RowByRow(), RowByRow()
    found, expected = (
        dabi(decode, CATEGORICAL, normal_boundary(decode, Z, POSITIONS), rms=1.0, radii=(), generator=generator())
        for decode in (DecodeInParts(parted, 2, (shift,)), lambda z: whole(z, shift))
    )
    assert found == expected
    assert found != QUESTIONS["normal"](RowByRow())
    assert torch.equal(DecodeInParts(parted, 2, (shift,))(Z), whole(Z, shift))


def test_cci_of_a_few_examples_at_a_time_is_that_of_all() -> None:
    found = [
        cci(ParallelConditionals(RowByRow()), Z, examples_at_once=at_once, generator=generator())
        for at_once in (None, 1, 2)
    ]
    assert found[0] == found[1] == found[2]
