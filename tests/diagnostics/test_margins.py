"""Distances and widths of boundaries, to first order exact for linear readouts."""

import json

import pytest
import torch

from fewstep.diagnostics import boundary_distance, boundary_width, draw_positions, margins, rms
from tests.diagnostics.decoders import (
    ConstantReadout,
    LinearReadout,
    SmoothReadout,
    normal,
    seeded,
    two_token_readout,
)


def test_distance_of_a_linear_readout_is_that_of_the_nearest_of_its_planes() -> None:
    decode, z = LinearReadout(normal(3, 4, 5)), normal(6, 5, seed=1)
    positions = draw_positions(6, 3, 2, seeded())
    found = margins(decode, z, positions)
    logits = decode(z)
    for b, row in enumerate(positions.tolist()):
        for p, i in enumerate(row):
            first, second = logits[b, i].topk(2).indices.tolist()
            gradient = decode.weight[i, first] - decode.weight[i, second]
            torch.testing.assert_close(found.gradient[b, p], gradient)
            torch.testing.assert_close(found.value[b, p], gradient @ z[b])
            torch.testing.assert_close(found.distance[b, p], gradient @ z[b] / gradient.norm())
    torch.testing.assert_close(found.direction.norm(dim=-1), torch.ones(6, 2, dtype=torch.float64))


def test_distance_and_width_are_in_units_of_rms_and_do_not_change_with_the_scale_of_the_latents() -> None:
    w, z, positions = normal(5), normal(40, 5, seed=1), torch.zeros(40, 1, dtype=torch.int64)
    distance = boundary_distance(two_token_readout(w), z, positions, generator=seeded())
    width = boundary_width(two_token_readout(w), z, positions, generator=seeded())
    ways = (z @ w).abs() / w.norm() / rms(z)
    for q, estimate in distance.quantiles:
        assert estimate.value == pytest.approx(float(torch.quantile(ways, q)))
        assert estimate.interval is not None
        assert estimate.interval.low <= estimate.value <= estimate.interval.high
    assert width.mean.value == pytest.approx(1 / float(w.norm()) / rms(z))
    scaled = boundary_distance(two_token_readout(w), 7 * z, positions, generator=seeded())
    assert scaled.mean.value == pytest.approx(distance.mean.value)


def test_measured_margins_spare_the_evaluations_and_change_nothing() -> None:
    decode, z, positions = SmoothReadout(6, 3, 5), normal(10, 6), draw_positions(10, 3, 2, seeded())

    def refuse(latents: torch.Tensor) -> torch.Tensor:
        raise AssertionError("evaluated again")

    again = boundary_distance(refuse, z, positions, generator=seeded(), measured=margins(decode, z, positions))
    assert again == boundary_distance(decode, z, positions, generator=seeded())


@pytest.mark.parametrize("vocab_size", [1, 5])
def test_points_without_a_gradient_are_infinitely_far_and_left_out_but_counted(vocab_size: int) -> None:
    decode, z = ConstantReadout(normal(3, vocab_size)), normal(4, 6)
    found = margins(decode, z, draw_positions(4, 3, 2, seeded()))
    assert found.distance.isinf().all()
    for measure in (boundary_distance, boundary_width):
        result = measure(decode, z, draw_positions(4, 3, 2, seeded()), generator=seeded())
        assert (result.num_points, result.num_infinite) == (0, 8)
        assert result.mean.value is None
        assert result.picture() is None
        assert "8 more have a zero gradient" in result.rows()[0].note
        json.dumps(result.to_dict(), allow_nan=False)


def test_a_latent_at_a_boundary_has_distance_zero_and_a_picture() -> None:
    z = torch.zeros(3, 4)
    result = boundary_distance(
        two_token_readout(normal(4, dtype=torch.float32)), z, torch.zeros(3, 1, dtype=torch.int64), generator=seeded()
    )
    assert result.mean.value == 0
    assert result.picture() is not None


def test_rows_are_named_by_quantile_and_the_histogram_holds_every_point() -> None:
    decode, z = SmoothReadout(6, 3, 5), normal(30, 6)
    result = boundary_distance(decode, z, draw_positions(30, 3, 2, seeded()), generator=seeded())
    assert [row.name for row in result.rows()] == [f"boundary_distance_p{q}" for q in ("01", "10", "50", "90")]
    assert sum(result.histogram.y) == pytest.approx(1)
    json.dumps(result.to_dict(), allow_nan=False)
    other = boundary_width(decode, z, draw_positions(30, 3, 2, seeded()), generator=seeded(), name="width_generated")
    assert other.rows()[2].name == "width_generated_p50"
