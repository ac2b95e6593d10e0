"""Flip counts: what moves far enough flips, and no flip is not infinity."""

import json
import math

import pytest
import torch

from fewstep.diagnostics import DabiFlip, dabi_flip, rms
from tests.diagnostics.decoders import ConstantReadout, normal, seeded, two_token_readout

POSITION = torch.zeros(50, 1, dtype=torch.int64)


def slab(distance: float) -> torch.Tensor:
    """50 latents in R^64 at ``distance`` from the plane where the first number is 0."""
    z = normal(50, 64)
    z[:, 0] = distance
    return z


FIRST_AXIS = torch.eye(64, dtype=torch.float64)[0]


def flips(distance: float, c: float, num_isotropic: int = 12) -> DabiFlip:
    return dabi_flip(
        two_token_readout(FIRST_AXIS), slab(distance), POSITION,
        radii=(c,), num_isotropic=num_isotropic, generator=seeded(),
    )  # fmt: skip


def test_moved_past_the_boundary_every_token_flips_and_short_of_it_none() -> None:
    length = 8 * rms(slab(1.0))
    assert flips(1.0, 1.01 / length).at_radius[0].normal.value == 1
    assert flips(1.0, 0.99 / length).at_radius[0].normal.value == 0


def test_isotropic_share_is_the_cap_of_the_sphere_and_the_ratio_its_inverse() -> None:
    # u_1 of a uniform unit vector in R^64 is close to a normal of variance 1/64: P(r u_1 > 1) for r = 8 / 0.7.
    c = 8 / 0.7 / (8 * rms(slab(1.0)))
    (found,) = flips(1.0, c, num_isotropic=400).at_radius
    expected = 0.5 * math.erfc(0.7 / math.sqrt(2))
    assert found.isotropic.value == pytest.approx(expected, rel=0.03)
    assert found.ratio.value == pytest.approx(1 / expected, rel=0.03)
    assert found.ratio.interval is not None
    assert found.ratio.interval.low <= found.ratio.value <= found.ratio.interval.high
    assert not found.is_lower_bound


def test_without_an_isotropic_flip_the_ratio_is_the_rule_of_three_marked_as_a_bound() -> None:
    result = flips(1.0, 1.1 / (8 * rms(slab(1.0))))
    (found,) = result.at_radius
    assert (found.normal.value, found.isotropic.value) == (1, 0)
    assert found.is_lower_bound
    assert found.num_draws == 50 * 12
    assert found.ratio.value == pytest.approx(50 * 12 / 3)
    assert result.rows()[0].note.startswith(">= ")
    json.dumps(result.to_dict(), allow_nan=False)


def test_positions_of_one_example_share_their_draws_and_do_not_tighten_the_bound() -> None:
    decode = two_token_readout(FIRST_AXIS, FIRST_AXIS)
    both = torch.tensor([[0, 1]]).expand(50, 2)
    c = 1.1 / (8 * rms(slab(1.0)))
    (found,) = dabi_flip(decode, slab(1.0), both, radii=(c,), generator=seeded()).at_radius
    assert found.ratio.value == pytest.approx(50 * 12 / 3)


def test_where_nothing_flips_at_all_the_ratio_is_undetermined() -> None:
    result = flips(1.0, 0.01)
    assert result.at_radius[0].ratio.value is None
    assert not result.at_radius[0].is_lower_bound


def test_a_constant_decoder_has_no_normal_to_move_along() -> None:
    result = dabi_flip(ConstantReadout(normal(2, 5)), normal(50, 4), POSITION, generator=seeded())
    assert (result.num_points, result.num_left_out) == (0, 50)
    assert all(row.estimate.value is None for row in result.rows())
    assert result.picture() is None
    json.dumps(result.to_dict(), allow_nan=False)


def test_rows_are_named_by_radius_and_bad_radii_refused() -> None:
    decode = two_token_readout(FIRST_AXIS)
    result = dabi_flip(decode, slab(1.0), POSITION, generator=seeded())
    assert [row.name for row in result.rows()] == ["dabi_flip_at_0.05", "dabi_flip_at_0.1", "dabi_flip_at_0.2"]
    assert result.picture() is not None
    with pytest.raises(ValueError, match="at least one positive radius"):
        dabi_flip(decode, slab(1.0), POSITION, radii=(), generator=seeded())
