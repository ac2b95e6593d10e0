"""A decoder asked for a few examples at a time gives the very figures of one that is asked for all."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from fewstep.diagnostics import (
    CategoricalResponse,
    ContinuousResponse,
    DecodeInParts,
    boundary_distance,
    cci,
    dabi,
    dabi_flip,
    data_points,
    noise_robustness,
    normal_boundary,
    reconstruction_error,
    segment_boundary,
    segment_midpoint,
    token_accuracy,
    worst_direction,
)
from tests.diagnostics.decoders import ParallelConditionals, SmoothReadout, normal

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


CATEGORICAL, CONTINUOUS = CategoricalResponse(), ContinuousResponse()
REAL = torch.ones_like(IDS, dtype=torch.bool)
QUESTIONS: dict[str, Callable[[Any], Any]] = {
    "normal": of_points(lambda decode: normal_boundary(decode, Z, POSITIONS), CATEGORICAL),
    "one": of_points(lambda decode: data_points(decode, Z, POSITIONS), CategoricalResponse(scope="one")),
    "segment": of_points(lambda decode: segment_boundary(decode, Z, Z.roll(1, 0), POSITIONS), CATEGORICAL),
    "worst": of_points(lambda decode: worst(decode, CATEGORICAL), CATEGORICAL),
    "continuous": of_points(lambda decode: segment_midpoint(Z, Z.roll(1, 0)), CONTINUOUS),
    "worst continuous": of_points(lambda decode: worst(decode, CONTINUOUS), CONTINUOUS),
    "flip": lambda decode: dabi_flip(decode, Z, POSITIONS, generator=generator()),
    "distance": lambda decode: boundary_distance(decode, Z, POSITIONS, generator=generator()),
    "robustness": lambda decode: noise_robustness(decode, Z, IDS, REAL, POSITIONS, generator=generator()),
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


class NeverWhole(DecodeInParts):
    """Gives nothing to who asks for all examples together."""

    def __call__(self, z: Tensor) -> Tensor:
        raise AssertionError(f"asked for {len(z)} examples together")


@pytest.mark.parametrize("name", QUESTIONS)
def test_the_output_of_all_examples_is_never_held_at_once(name: str) -> None:
    assert QUESTIONS[name](NeverWhole(RowByRow(), 2)) == QUESTIONS[name](RowByRow())


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


def test_no_example_at_once_is_refused() -> None:
    with pytest.raises(ValueError, match="examples_at_once is 0"):
        DecodeInParts(RowByRow(), 0)
    with pytest.raises(ValueError, match="examples_at_once is 0"):
        cci(ParallelConditionals(RowByRow()), Z, examples_at_once=0, generator=generator())


def test_accuracy_and_error_are_shares_that_one_can_count() -> None:
    def answer(ids: Tensor) -> Callable[[Tensor], Tensor]:
        return lambda z: torch.nn.functional.one_hot(ids, VOCABULARY).double()

    right = token_accuracy(answer(IDS), Z, IDS, generator=generator())
    assert (right.value.value, right.note) == (1.0, "20 tokens")
    other = (IDS + (torch.arange(TOKENS) == 1)) % VOCABULARY
    shifted = token_accuracy(answer(other), Z, IDS, generator=generator())
    assert shifted.value.value == pytest.approx(3 / 4)
    mean = reconstruction_error(lambda z: Z.mean(0).expand_as(Z), Z, Z, generator=generator())
    half = reconstruction_error(lambda z: (z + Z.mean(0)) / 2, Z, Z, generator=generator())
    assert mean.value.value == pytest.approx(1)
    assert half.value.value == pytest.approx(1 / 4)
