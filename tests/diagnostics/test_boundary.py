"""Boundary points lie on boundaries, their directions are the ones named."""

import pytest
import torch

from fewstep.diagnostics import (
    CategoricalResponse,
    ContinuousResponse,
    data_points,
    data_segments,
    draw_positions,
    normal_boundary,
    segment_boundary,
    segment_midpoint,
    worst_direction,
)
from tests.diagnostics.decoders import (
    ConstantReadout,
    LinearReadout,
    ScalingDecoder,
    SmoothReadout,
    normal,
    seeded,
    two_token_readout,
)


def top_two_gap(logits: torch.Tensor) -> torch.Tensor:
    first, second = logits.topk(2, -1).values.unbind(-1)
    return first - second


def test_positions_are_drawn_without_replacement_and_only_where_the_mask_allows() -> None:
    mask = torch.arange(9) < torch.tensor([[5], [9], [4]])
    drawn = draw_positions(3, 9, 4, seeded(), mask=mask)
    assert drawn.shape == (3, 4)
    assert all(len(set(row)) == 4 for row in drawn.tolist())
    assert mask.gather(1, drawn).all()
    counts = draw_positions(4000, 4, 1, seeded()).flatten().bincount(minlength=4)
    assert ((counts - 1000).abs() < 120).all()  # 4 standard deviations
    with pytest.raises(ValueError, match="5 positions"):
        draw_positions(3, 9, 5, seeded(), mask=mask)


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
    for p in range(2):
        x, ok = points.z[:, p], points.accepted[:, p]
        logits = decode(x)[torch.arange(20), positions[:, p]]
        assert (top_two_gap(logits)[ok] <= 1e-3).all()
        before = decode(z)[torch.arange(20), positions[:, p]].argmax(-1)
        assert (logits.topk(2, -1).indices == before[:, None]).any(1)[ok].all()
        step = 1e-5 * points.direction[:, p]
        ahead, behind = (decode(x + s * step)[torch.arange(20), positions[:, p]] for s in (1, -1))
        growth = (ahead - behind).gather(1, before[:, None])[:, 0]
        assert (growth[ok] > 0).all()  # towards the leader
    torch.testing.assert_close(
        points.direction[points.accepted].norm(dim=-1), torch.ones(int(points.accepted.sum())).double()
    )


@pytest.mark.parametrize("vocab_size", [1, 5])
def test_without_a_gradient_no_point_is_accepted(vocab_size: int) -> None:
    z, positions = normal(3, 6), torch.zeros(3, 1, dtype=torch.int64)
    points = normal_boundary(ConstantReadout(normal(2, vocab_size)), z, positions)
    assert not points.accepted.any()
    assert not points.direction.any()
    torch.testing.assert_close(points.z[:, 0], z)


def test_a_latent_at_a_boundary_is_its_own_boundary_point() -> None:
    z = torch.zeros(1, 4, dtype=torch.float64)
    points = normal_boundary(two_token_readout(normal(4)), z, torch.zeros(1, 1, dtype=torch.int64))
    assert points.accepted.all()
    assert not points.z.any()


def test_points_are_found_as_well_as_half_precision_logits_allow() -> None:
    # Logits near 100 in bfloat16 are multiples of one half: a margin of a thousandth is out of reach.
    decode = LinearReadout(5 * normal(1, 3, 8, dtype=torch.float32), torch.full((1, 3), 100.0))
    z, positions = normal(200, 8, seed=1, dtype=torch.float32), torch.zeros(200, 1, dtype=torch.int64)
    points = normal_boundary(lambda z: decode(z).bfloat16(), z, positions)
    assert points.accepted.all()
    assert (top_two_gap(decode(points.z[:, 0])[:, 0]) <= 3).all()


def test_points_do_not_depend_on_the_gradient_mode_of_the_caller() -> None:
    decode, expected = SmoothReadout(8, 4, 6), None
    for mode in (torch.enable_grad, torch.no_grad, torch.inference_mode):
        with mode():
            points = normal_boundary(decode, normal(20, 8), draw_positions(20, 4, 2, seeded()))
        expected = points.z if expected is None else expected
        torch.testing.assert_close(points.z, expected, rtol=0, atol=0)


def test_a_vanishing_slope_leads_to_no_point_rather_than_to_infinity() -> None:
    decode = two_token_readout(torch.full((4,), 1e-41), bias=torch.ones(1))
    points = normal_boundary(decode, normal(3, 4, dtype=torch.float32), torch.zeros(3, 1, dtype=torch.int64))
    assert points.z.isfinite().all()
    assert not points.accepted.any()


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


def test_segments_between_equal_latents_are_not_accepted() -> None:
    z = normal(3, 2, 4)
    other = z.clone()
    other[0] += 1
    assert segment_midpoint(z, other).accepted[:, 0].tolist() == [True, False, False]
    assert data_segments(z, other, None).accepted[:, 0].tolist() == [True, False, False]
    torch.testing.assert_close(segment_midpoint(z, other).z[0, 0], z[0] + 0.5)
    assert segment_midpoint(z, other).position is None
    with pytest.raises(ValueError, match="one partner an example"):
        segment_midpoint(z, other[:2])


def test_data_points_are_the_latents_with_their_normals() -> None:
    w = normal(6)
    z, positions = normal(3, 6, seed=1), torch.zeros(3, 2, dtype=torch.int64)
    points = data_points(two_token_readout(w), z, positions)
    torch.testing.assert_close(points.z[:, 1], z)
    torch.testing.assert_close((points.direction[:, 1] @ w).abs(), w.norm().expand(3))
    along = data_segments(z, z.flip(0), positions)
    assert along.z.shape == (3, 2, 6)
    assert along.accepted[:, 0].tolist() == [True, False, True]


def test_worst_direction_is_the_leading_eigenvector_of_the_information() -> None:
    decode = LinearReadout(3 * normal(2, 5, 6), normal(2, 5, seed=1))
    z = normal(3, 6, seed=2)
    points = worst_direction(
        decode, CategoricalResponse(), data_points(decode, z, torch.zeros(3, 1, dtype=torch.int64)),
        num_iterations=300, generator=seeded(),
    )  # fmt: skip
    leading = torch.linalg.eigh(decode.fisher(z)).eigenvectors[..., -1]
    torch.testing.assert_close((points.direction[:, 0] * leading).sum(1).abs(), torch.ones(3, dtype=torch.float64))
    assert points.kind == "worst"

    scaling = ScalingDecoder(torch.tensor([1.0, 5.0, 2.0], dtype=torch.float64))
    segment = segment_midpoint(normal(2, 3), normal(2, 3, seed=1))
    found = worst_direction(scaling, ContinuousResponse(), segment, num_iterations=50, generator=seeded())
    torch.testing.assert_close(found.direction[..., 1].abs(), torch.ones(2, 1, dtype=torch.float64))


def test_worst_direction_of_a_constant_is_a_unit_vector_still() -> None:
    segment = segment_midpoint(normal(2, 3), normal(2, 3, seed=1))
    decode = ConstantReadout(normal(2, 4))
    found = worst_direction(decode, CategoricalResponse(), segment, generator=seeded())
    torch.testing.assert_close(found.direction.norm(dim=-1), torch.ones(2, 1, dtype=torch.float64))


@pytest.mark.parametrize("positions", [torch.zeros(2, 1, dtype=torch.int64), torch.zeros(3), torch.zeros(3, 1)])
def test_positions_that_do_not_fit_the_latents_are_refused(positions: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="draw them with draw_positions"):
        normal_boundary(two_token_readout(normal(6)), normal(3, 6), positions)
