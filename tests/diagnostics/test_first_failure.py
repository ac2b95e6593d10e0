"""The radius at which a token changes: closed forms of planes and balls, and bounds where none changes."""

import math

import pytest
import torch
from torch import Tensor

from fewstep.diagnostics.decoding import random_directions, rms
from fewstep.diagnostics.first_failure import RADII, censored_median, failure_radii, first_failure
from fewstep.diagnostics.margins import margins
from fewstep.diagnostics.result import Result
from tests.diagnostics.decoders import ConstantReadout, normal, plain, seeded, two_token_readout

N, EXAMPLES = 12, 40
FIRST = torch.zeros(EXAMPLES, 1, dtype=torch.int64)
PLANE = normal(N, seed=3)
BIAS = torch.tensor([0.3], dtype=torch.float64)
"""One boundary: the plane PLANE z + 0.3 = 0."""


def distances(z: Tensor) -> Tensor:
    """Of latents (B, n) from the plane."""
    return (z @ PLANE + BIAS).abs() / PLANE.norm()


def measured(decode: object, z: Tensor, positions: Tensor = FIRST, **changes: object) -> Result:
    return first_failure(decode, z, positions, margins(decode, z, positions), generator=seeded(), **changes)


def test_next_to_a_plane_the_radius_is_the_distance_along_the_normal_and_over_the_cosine_elsewhere() -> None:
    decode, z, unit = two_token_readout(PLANE, bias=BIAS), normal(EXAMPLES, N), PLANE / PLANE.norm()
    lengths = [0.01 * 2**step for step in range(14)]
    along = failure_radii(decode, z, FIRST, unit.expand(EXAMPLES, -1), lengths, 50)[:, 0]
    torch.testing.assert_close(along, distances(z), rtol=1e-12, atol=0)
    u = random_directions(z, seeded(1))
    expected = distances(z) / (u @ unit).abs()
    reached = expected < lengths[-1]
    across = failure_radii(decode, z, FIRST, u, lengths, 50)[:, 0]
    torch.testing.assert_close(across[reached], expected[reached], rtol=1e-12, atol=0)
    assert bool(across[~reached].isinf().all()) and int(reached.sum()) > 0


def test_the_rows_are_the_medians_of_the_closed_forms_in_units_of_the_latents_rms() -> None:
    decode, z, wide = two_token_readout(PLANE, bias=BIAS), normal(EXAMPLES, N), [0.001 * 2**step for step in range(30)]
    result = measured(decode, z, radii=wide, num_random=8, num_bisections=40)
    assert result["first_failure_boundary"].value == pytest.approx(float(distances(z).quantile(0.5)) / rms(z))
    draws = seeded()
    cosines = torch.stack([random_directions(z, draws) @ PLANE / PLANE.norm() for _ in range(8)], 1).abs()
    expected = float((1 / cosines).quantile(0.5))
    assert result["first_failure_ratio"].value == pytest.approx(expected)
    radii = (distances(z)[:, None] / cosines).flatten()
    assert result["first_failure_random"].value == pytest.approx(float(radii.quantile(0.5)) / rms(z))
    assert not any(row.note.startswith("median; >=") for row in result.rows)
    short = measured(decode, z, num_random=8, num_bisections=40)
    last = RADII[-1] * math.sqrt(N) * rms(z)
    assert short.facts["num_censored_random"] == int((radii > last).sum()) > 0
    assert short["first_failure_random"].value == pytest.approx(result["first_failure_random"].value, rel=1e-9)
    assert 0.8 * expected < (short["first_failure_ratio"].value or 0) < expected
    assert short.rows[2].note.startswith("median; >=")
    interval = result["first_failure_ratio"].interval
    assert interval is not None and interval.low < interval.high
    plain(result)


def test_a_ball_shaped_cell_has_a_ratio_of_1() -> None:
    centres = normal(EXAMPLES, N, seed=5)

    def decode(z: Tensor) -> Tensor:
        lead = 1 - (z - centres).square().sum(1)
        return torch.stack([lead, 0 * lead], -1)[:, None]

    z = centres + 1e-7 * random_directions(centres, seeded(2))  # at the centre itself there is no gradient
    result = measured(decode, z, num_bisections=40)
    assert result["first_failure_ratio"].value == pytest.approx(1, abs=1e-6)
    assert result["first_failure_boundary"].value == pytest.approx(1 / rms(z), rel=1e-6)


def test_the_first_of_several_boundaries_counts_and_either_way_along_the_line() -> None:
    def decode(z: Tensor) -> Tensor:  # token 1 in slabs at 3 < x < 4 and x > 9, token 2 at x < -2
        x = z[:, 0]
        inside = ((x > 3) & (x < 4)) | (x > 9)
        return torch.stack([torch.zeros_like(x), inside.double() - 0.5, (x < -2).double() - 0.5], -1)[:, None]

    axis = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    lengths = [0.5 * step for step in range(1, 30)]
    for start, radius in ((0.0, 2.0), (2.0, 1.0), (6.0, 2.0), (8.5, 0.5)):
        z = torch.tensor([[start, 0.0]], dtype=torch.float64)
        assert float(failure_radii(decode, z, FIRST[:1], axis, lengths, 40)) == pytest.approx(radius, abs=1e-9)


def test_where_no_token_changes_the_median_is_a_bound_at_the_search_radius() -> None:
    z = normal(EXAMPLES, N)
    far = two_token_readout(PLANE, bias=torch.tensor([1e6], dtype=torch.float64))
    result = measured(far, z)
    for row in result.rows[:2]:
        assert row.estimate.value == pytest.approx(RADII[-1] * math.sqrt(N))
        assert row.note.startswith("median; >=; 100.0% censored")
    assert result["first_failure_ratio"].value == 0, "nothing is known, and 0 bounds any ratio"
    assert result.rows[2].note.startswith("median; >=")
    constant = measured(ConstantReadout(torch.tensor([[0.0, 1.0]])), z)
    assert constant["first_failure_boundary"].value is None
    assert constant.facts["num_left_out"] == EXAMPLES
    plain(constant)


def test_a_median_is_exact_as_long_as_all_that_is_censored_lies_above_it() -> None:
    values = torch.tensor([[1.0], [2.0], [3.0], [5.0], [5.0]])
    everything = torch.ones_like(values)
    for censored, bound in (([3, 4], False), ([2, 3, 4], True), ([0], True), ([], False)):
        flags = torch.zeros_like(values, dtype=torch.bool)
        flags[censored] = True
        estimate, is_bound = censored_median(values, flags, everything, seeded())
        assert (estimate.value, is_bound) == (3.0, bound)
