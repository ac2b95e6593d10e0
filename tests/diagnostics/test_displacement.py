"""Accuracy and flips of displaced latents: what moves far enough flips, and no flip is not infinity."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from fewstep.diagnostics.decoding import rms
from fewstep.diagnostics.displacement import dabi_flip, noise_robustness, reconstruction_error, token_accuracy
from fewstep.diagnostics.margins import margins
from fewstep.diagnostics.result import Result
from tests.diagnostics.decoders import ConstantReadout, normal, plain, seeded, two_token_readout

POSITION = torch.zeros(50, 1, dtype=torch.int64)


def slab(distance: float) -> torch.Tensor:
    """50 latents in R^64 at ``distance`` from the plane where the first number is 0."""
    z = normal(50, 64)
    z[:, 0] = distance
    return z


FIRST_AXIS = torch.eye(64, dtype=torch.float64)[0]


def flips(distance: float, c: float, num_isotropic: int = 12) -> Result:
    decode, z = two_token_readout(FIRST_AXIS), slab(distance)
    measured = margins(decode, z, POSITION)
    return dabi_flip(decode, z, POSITION, measured, radii=(c,), num_isotropic=num_isotropic, generator=seeded())


def test_isotropic_share_is_the_cap_of_the_sphere_and_the_ratio_its_inverse() -> None:
    # u_1 of a uniform unit vector in R^64 is close to a normal of variance 1/64: P(r u_1 > 1) for r = 8 / 0.7.
    c = 8 / 0.7 / (8 * rms(slab(1.0)))
    result = flips(1.0, c, num_isotropic=400)
    ratio = result.rows[0].estimate
    expected = 0.5 * math.erfc(0.7 / math.sqrt(2))
    assert result.curves["isotropic"].y[0] == pytest.approx(expected, rel=0.03)
    assert ratio.value == pytest.approx(1 / expected, rel=0.03)
    assert ratio.interval is not None
    assert ratio.interval.low <= ratio.value <= ratio.interval.high
    assert not result.rows[0].note.startswith(">=")


def test_a_ratio_is_undetermined_without_a_flip_and_a_bound_by_the_rule_of_three_without_an_isotropic_one() -> None:
    length = 8 * rms(slab(1.0))
    short = flips(1.0, 0.99 / length)
    assert short.rows[0].estimate.value is None and not short.rows[0].note.startswith(">=")
    both, z = torch.tensor([[0, 1]]).expand(50, 2), slab(1.0)
    decode = two_token_readout(FIRST_AXIS, FIRST_AXIS)  # positions share their draws, which does not tighten the bound
    for result in (
        flips(1.0, 1.01 / length),
        dabi_flip(decode, z, both, margins(decode, z, both), radii=(1.01 / length,), generator=seeded()),
    ):
        assert (result.curves["normal"].y, result.curves["isotropic"].y) == ((1,), (0,))
        assert result.rows[0].estimate.value == pytest.approx(50 * 12 / 3)
        assert result.rows[0].note.startswith(">= (no flip in 600 isotropic draws)")
        plain(result)


def test_a_constant_decoder_has_no_normal_to_move_along() -> None:
    decode, z = ConstantReadout(normal(2, 5)), normal(50, 4)
    result = dabi_flip(decode, z, POSITION, margins(decode, z, POSITION), generator=seeded())
    assert (result.facts["num_points"], result.facts["num_left_out"]) == (0, 50)
    assert all(row.estimate.value is None for row in result.rows)
    assert result.picture() is None
    plain(result)


N = 16
AXES = torch.eye(N, dtype=torch.float64)


def measure(levels: tuple[float, ...]) -> Result:
    """2000 latents of ones, so rms is 1, with two tokens: each is at distance 1 from its flip, along its own axis."""
    z, decode = torch.ones(2000, N, dtype=torch.float64), two_token_readout(AXES[0], AXES[1])
    positions = torch.tensor([[1]]).expand(2000, 1)
    measured = margins(decode, z, positions)
    return noise_robustness(decode, z, decode(z).argmax(-1), positions, measured, levels=levels, generator=seeded())


def test_isotropic_accuracy_is_the_normal_distribution_at_the_distance() -> None:
    found = measure((0.0, 0.5, 1.0))
    for level, accuracy in zip((0.5, 1.0), found.curves["isotropic"].y[1:], strict=True):
        assert accuracy == pytest.approx(0.5 * math.erfc(-1 / level / math.sqrt(2)), abs=0.02)
    assert found["noise_accuracy_at_0"].value == 1
    assert found.curves["isotropic_at_positions"].y[2] == pytest.approx(found.curves["isotropic"].y[2], abs=0.03)


def test_the_same_length_along_the_normal_breaks_the_token_as_soon_as_it_reaches_the_distance() -> None:
    found = measure((0.0, 0.24, 0.26, 0.99, 1.01))  # times sqrt(16): 0.96 and 1.04
    assert found.curves["aligned"].y == (1, 1, 0, 0, 0)
    assert found.curves["aligned_one_number"].y == (1, 1, 1, 1, 0)


def test_accuracy_and_error_are_shares_that_one_can_count() -> None:
    latents, ids = normal(5, 6, seed=4), torch.randint(32, (5, 4), generator=seeded())

    def answer(ids: Tensor) -> Callable[[Tensor], Tensor]:
        return lambda z: torch.nn.functional.one_hot(ids, 32).double()

    right = token_accuracy(answer(ids), latents, ids, generator=seeded())
    assert (right.rows[0].estimate.value, right.rows[0].note) == (1.0, "20 tokens")
    other = (ids + (torch.arange(4) == 1)) % 32
    shifted = token_accuracy(answer(other), latents, ids, generator=seeded())
    assert shifted.rows[0].estimate.value == pytest.approx(3 / 4)
    mean = reconstruction_error(lambda z: latents.mean(0).expand_as(latents), latents, latents, generator=seeded())
    half = reconstruction_error(lambda z: (z + latents.mean(0)) / 2, latents, latents, generator=seeded())
    assert mean.rows[0].estimate.value == pytest.approx(1)
    assert half.rows[0].estimate.value == pytest.approx(1 / 4)
