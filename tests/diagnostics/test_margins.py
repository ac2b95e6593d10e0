"""Margins, distances to boundaries, and the points on them: to first order exact for linear readouts."""

import pytest
import torch

from fewstep.diagnostics.boundary import data_points, normal_boundary, segment_boundary, segment_points, worst_direction
from fewstep.diagnostics.decoding import draw_positions, rms
from fewstep.diagnostics.margins import QUANTILES, boundary_distance, boundary_width, margins
from fewstep.diagnostics.response import CATEGORICAL, CONTINUOUS
from tests.diagnostics.decoders import (
    ConstantReadout,
    LinearReadout,
    ScalingDecoder,
    SmoothReadout,
    normal,
    plain,
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
    distance = boundary_distance(margins(two_token_readout(w), z, positions), z, generator=seeded())
    width = boundary_width(margins(two_token_readout(w), z, positions), z, generator=seeded())
    ways = (z @ w).abs() / w.norm() / rms(z)
    for q, row in zip(QUANTILES, distance.rows, strict=True):
        estimate = row.estimate
        assert estimate.value == pytest.approx(float(torch.quantile(ways, q)))
        assert estimate.interval is not None
        assert estimate.interval.low <= estimate.value <= estimate.interval.high
    assert width.facts["mean"].value == pytest.approx(1 / float(w.norm()) / rms(z))
    scaled = boundary_distance(margins(two_token_readout(w), 7 * z, positions), 7 * z, generator=seeded())
    assert scaled.facts["mean"].value == pytest.approx(distance.facts["mean"].value)


@pytest.mark.parametrize("vocab_size", [1, 5])
def test_points_without_a_gradient_are_infinitely_far_and_left_out_but_counted(vocab_size: int) -> None:
    decode, z = ConstantReadout(normal(3, vocab_size)), normal(4, 6)
    positions = draw_positions(4, 3, 2, seeded())
    found, points = margins(decode, z, positions), normal_boundary(decode, z, positions)
    assert found.distance.isinf().all()
    assert not points.accepted.any() and not points.direction.any() and torch.equal(points.z[:, 1], z)
    other = z + (torch.arange(4) == 0)[:, None]
    assert segment_points(z, other, "data").accepted[:, 0].tolist() == [True, False, False, False]
    for measure in (boundary_distance, boundary_width):
        result = measure(found, z, generator=seeded())
        assert (result.facts["num_points"], result.facts["num_infinite"]) == (0, 8)
        assert result.facts["mean"].value is None
        assert result.picture() is None
        assert "8 more have a zero gradient" in result.rows[0].note
        plain(result)


def top_two_gap(logits: torch.Tensor) -> torch.Tensor:
    first, second = logits.topk(2, -1).values.unbind(-1)
    return first - second


def test_positions_are_drawn_without_replacement_and_uniformly() -> None:
    assert all(len(set(row)) == 4 for row in draw_positions(3, 9, 4, seeded()).tolist())
    counts = draw_positions(4000, 4, 1, seeded()).flatten().bincount(minlength=4)
    assert ((counts - 1000).abs() < 120).all()  # 4 standard deviations
    with pytest.raises(ValueError, match="5 positions of 4 tokens"):
        draw_positions(3, 4, 5, seeded())


def test_newton_reaches_the_foot_of_the_perpendicular_of_a_linear_margin() -> None:
    w = normal(6)
    z = normal(5, 6, seed=1)
    points = normal_boundary(two_token_readout(w), z, torch.zeros(5, 1, dtype=torch.int64))
    torch.testing.assert_close(points.z[:, 0], z - (z @ w / w.square().sum())[:, None] * w)
    torch.testing.assert_close((points.direction[:, 0] @ (w / w.norm())).abs(), torch.ones(5, dtype=torch.float64))
    assert points.accepted.all()


def test_a_token_that_overtakes_becomes_the_runner_up() -> None:
    # At z = 0 token 1 is second by bias, but its margin hardly moves; token 2 is met first on the way.
    weight = torch.tensor([[[0.0, 0.0], [0.1, 0.0], [1.0, 1.0]]], dtype=torch.float64)
    decode = LinearReadout(weight, torch.tensor([[0.0, -1.0, -1.1]], dtype=torch.float64))
    points = normal_boundary(decode, torch.zeros(1, 2, dtype=torch.float64), torch.zeros(1, 1, dtype=torch.int64))
    logits = decode(points.z[:, 0])[0, 0]
    assert points.accepted.all()
    assert logits.topk(2).indices.sort().values.tolist() == [0, 2]
    assert top_two_gap(logits) < 1e-3


def test_accepted_points_of_a_curved_readout_have_two_leaders_and_the_normal_of_their_margin() -> None:
    decode, z = SmoothReadout(8, 4, 6), normal(20, 8, seed=3)
    positions = draw_positions(20, 4, 2, seeded())
    points = normal_boundary(decode, z, positions)
    assert points.accepted.double().mean() > 0.9
    for p, column in enumerate(positions.T):
        x, step, ok = points.z[:, p], points.direction[:, p], points.accepted[:, p]
        before, here, ahead = (decode(at)[torch.arange(20), column][ok] for at in (z, x, x + 1e-5 * step))
        assert (top_two_gap(here) <= 1e-3).all()
        leader = before.argmax(-1, keepdim=True)
        assert (here.topk(2, -1).indices == leader).any(1).all()
        assert (ahead.gather(1, leader) > here.gather(1, leader)).all()  # towards the leader
        torch.testing.assert_close(step[ok].norm(dim=-1), torch.ones(int(ok.sum()), dtype=torch.float64))


def test_points_are_found_as_well_as_half_precision_logits_allow() -> None:
    # Logits near 100 in bfloat16 are multiples of one half: a margin of a thousandth is out of reach.
    decode = LinearReadout(5 * normal(1, 3, 8, dtype=torch.float32), torch.full((1, 3), 100.0))
    z, positions = normal(200, 8, seed=1, dtype=torch.float32), torch.zeros(200, 1, dtype=torch.int64)
    points = normal_boundary(lambda z: decode(z).bfloat16(), z, positions)
    assert points.accepted.all()
    assert (top_two_gap(decode(points.z[:, 0])[:, 0]) <= 3).all()


def test_bisection_finds_the_flip_on_the_segment() -> None:
    w = normal(6)
    decode, z_a = two_token_readout(w, bias=torch.tensor([0.2], dtype=torch.float64)), normal(8, 6, seed=1)
    z_b = normal(8, 6, seed=2)
    points = segment_boundary(decode, z_a, z_b, torch.zeros(8, 1, dtype=torch.int64))
    flips = decode(z_a)[:, 0].argmax(-1) != decode(z_b)[:, 0].argmax(-1)
    assert 0 < flips.sum() < 8
    assert points.accepted[:, 0].equal(flips)
    share = (z_a @ w + 0.2) / ((z_a - z_b) @ w)
    expected = z_a + share[:, None] * (z_b - z_a)
    torch.testing.assert_close(points.z[flips, 0], expected[flips], rtol=0, atol=1e-5)
    torch.testing.assert_close(points.direction[:, 0], (z_b - z_a) / (z_b - z_a).norm(dim=1, keepdim=True))


def test_worst_direction_is_the_leading_eigenvector_of_the_information() -> None:
    decode = LinearReadout(3 * normal(2, 5, 6), normal(2, 5, seed=1))
    z = normal(3, 6, seed=2)
    points = worst_direction(
        decode, CATEGORICAL, data_points(margins(decode, z, torch.zeros(3, 1, dtype=torch.int64)), z),
        num_iterations=300, generator=seeded(),
    )  # fmt: skip
    leading = torch.linalg.eigh(decode.fisher(z)).eigenvectors[..., -1]
    torch.testing.assert_close((points.direction[:, 0] * leading).sum(1).abs(), torch.ones(3, dtype=torch.float64))
    assert points.kind == "worst"

    scaling = ScalingDecoder(torch.tensor([1.0, 5.0, 2.0], dtype=torch.float64))
    segment = segment_points(normal(2, 3), normal(2, 3, seed=1), "midpoint")
    found = worst_direction(scaling, CONTINUOUS, segment, num_iterations=50, generator=seeded())
    torch.testing.assert_close(found.direction[..., 1].abs(), torch.ones(2, 1, dtype=torch.float64))
    flat = worst_direction(ConstantReadout(normal(2, 4)), CATEGORICAL, segment, generator=seeded())
    torch.testing.assert_close(flat.direction.norm(dim=-1), torch.ones(2, 1, dtype=torch.float64))


@pytest.mark.parametrize("positions", [torch.zeros(2, 1, dtype=torch.int64), torch.zeros(3), torch.zeros(3, 1)])
def test_positions_that_do_not_fit_the_latents_are_refused(positions: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="draw them with draw_positions"):
        normal_boundary(two_token_readout(normal(6)), normal(3, 6), positions)
