"""DABI against its closed forms."""

import json
import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from fewstep.diagnostics import (
    BoundaryPoints,
    CategoricalResponse,
    ContinuousResponse,
    Dabi,
    dabi,
    data_points,
    draw_positions,
    fisher_trace,
    normal_boundary,
    rms,
    segment_midpoint,
    worst_direction,
)
from tests.diagnostics.decoders import (
    ConstantReadout,
    Counted,
    LinearReadout,
    ScalingDecoder,
    SmoothReadout,
    normal,
    seeded,
    two_token_readout,
)

CATEGORICAL, CONTINUOUS = CategoricalResponse(), ContinuousResponse()
FIRST = torch.zeros(6, 1, dtype=torch.int64)


def local(decode: object, points: BoundaryPoints, *, num_probes: int | None = None, **options: object) -> Dabi:
    """The local limit alone."""
    response = CONTINUOUS if isinstance(decode, ScalingDecoder) else CATEGORICAL
    return dabi(decode, response, points, rms=1.0, radii=(), num_probes=num_probes, generator=seeded(), **options)  # type: ignore[arg-type]


def value(result: Dabi) -> float:
    assert result.dabi.value is not None
    return result.dabi.value


@pytest.mark.parametrize("num_probes", [None, 3])
def test_one_position_of_two_tokens_has_dabi_n_wherever_it_is_measured(num_probes: int | None) -> None:
    decode, z = two_token_readout(normal(7)), normal(6, 7, seed=1)
    for points in (normal_boundary(decode, z, FIRST), data_points(decode, z, FIRST)):
        found = local(decode, points, num_probes=num_probes)
        assert value(found) == pytest.approx(7, rel=1e-12)
        assert found.dabi_fraction.value == pytest.approx(1, rel=1e-12)
        assert found.pooled.value == pytest.approx(7, rel=1e-12)


def test_two_orthogonal_positions_at_a_boundary_share_the_sensitivity() -> None:
    a, b = torch.linalg.qr(normal(6, 2))[0].T * 3
    decode = two_token_readout(a, b)
    points = normal_boundary(decode, torch.zeros(6, 6, dtype=torch.float64), FIRST)
    assert value(local(decode, points)) == pytest.approx(3)


def test_a_saturated_second_position_leaves_all_sensitivity_to_the_first() -> None:
    a, b = torch.linalg.qr(normal(6, 2))[0].T * 3
    decode = two_token_readout(a, b, bias=torch.tensor([0.0, 40.0], dtype=torch.float64))
    points = normal_boundary(decode, torch.zeros(6, 6, dtype=torch.float64), FIRST)
    assert value(local(decode, points)) == pytest.approx(6)


def test_a_linear_readout_of_many_tokens_has_the_closed_form_at_any_point() -> None:
    decode = LinearReadout(normal(3, 7, 5), normal(3, 7, seed=1))
    z = normal(6, 5, seed=2)
    points = data_points(decode, z, FIRST)
    fisher, u = decode.fisher(z), points.direction[:, 0]
    ratios = 5 * torch.einsum("bn,bnm,bm->b", u, fisher, u) / fisher.diagonal(dim1=1, dim2=2).sum(1)
    assert value(local(decode, points)) == pytest.approx(float(ratios.mean()))
    assert local(decode, points).median.value == pytest.approx(float(torch.quantile(ratios, 0.5)))


def test_an_orthonormal_decoder_has_dabi_one_in_every_direction_and_at_every_radius() -> None:
    basis = torch.linalg.qr(normal(9, 5))[0].T
    points = segment_midpoint(normal(6, 5), normal(6, 5, seed=1))
    found = dabi(lambda z: z @ basis, CONTINUOUS, points, rms=1.0, num_probes=None, generator=seeded())
    assert value(found) == pytest.approx(1)
    assert [one.value.value for one in found.at_radius] == pytest.approx([1, 1, 1])


def test_a_diagonal_decoder_has_the_closed_form_of_its_singular_values() -> None:
    singular = torch.tensor([4.0, 2.0, 1.0, 0.5], dtype=torch.float64)
    points = segment_midpoint(normal(6, 4), normal(6, 4, seed=1))
    squares = (points.direction[:, 0] * singular).square().sum(1)
    assert value(local(ScalingDecoder(singular), points)) == pytest.approx(
        float((4 * squares / singular.square().sum()).mean())
    )
    axes = replace(points, direction=torch.eye(4, dtype=torch.float64)[[0]].expand(6, 4)[:, None])
    assert value(local(ScalingDecoder(singular), axes)) == pytest.approx(4 * 16 / 21.25)


def test_the_worst_direction_has_the_largest_dabi() -> None:
    decode, z = SmoothReadout(8, 4, 6), normal(6, 8)
    points = normal_boundary(decode, z, FIRST)
    worst = worst_direction(decode, CATEGORICAL, points, num_iterations=100, generator=seeded())
    assert value(local(decode, worst)) >= value(local(decode, points))


def test_random_probes_agree_with_the_exact_trace_within_their_error() -> None:
    decode, z = SmoothReadout(24, 6, 8), normal(200, 24)
    points = data_points(decode, z, draw_positions(200, 6, 1, seeded()))
    (column,) = points.columns()
    exact = fisher_trace(decode, CATEGORICAL, *column, num_probes=None, generator=seeded())
    drawn = fisher_trace(decode, CATEGORICAL, *column, num_probes=12, generator=seeded())
    assert not exact.standard_error.any()
    deviations = (drawn.across - exact.across) / drawn.standard_error
    assert (deviations.abs() < 2.2).double().mean() > 0.88  # Student's t with 11 degrees of freedom: 0.95
    assert abs(float(deviations.mean())) < 0.35
    torch.testing.assert_close(drawn.along, exact.along)


def test_the_exact_trace_is_that_of_the_matrix() -> None:
    decode = LinearReadout(normal(3, 7, 5), normal(3, 7, seed=1))
    z, u = normal(4, 5, seed=2), torch.nn.functional.normalize(normal(4, 5, seed=3))
    found = fisher_trace(decode, CATEGORICAL, z, u, None, num_probes=None, generator=seeded())
    torch.testing.assert_close(found.total, decode.fisher(z).diagonal(dim1=1, dim2=2).sum(1))


def test_probes_never_lift_dabi_above_n() -> None:
    decode, z = two_token_readout(normal(30), 1e-3 * normal(30, seed=1)), normal(6, 30, seed=2)
    points = normal_boundary(decode, z, FIRST)
    for num_probes in (1, 2, 8):
        assert value(local(decode, points, num_probes=num_probes)) <= 30


def test_isotropic_draws_at_the_smallest_radius_agree_with_the_local_limit() -> None:
    decode, z = SmoothReadout(16, 6, 8), normal(60, 16)
    points = normal_boundary(decode, z, draw_positions(60, 6, 2, seeded()))
    found = dabi(decode, CATEGORICAL, points, rms=rms(z), num_isotropic=24, num_probes=None, generator=seeded())
    smallest = found.at_radius[0]
    assert smallest.c == 0.001
    assert smallest.radius == pytest.approx(0.001 * 4 * rms(z))
    assert smallest.value.interval is not None
    assert found.pooled.value is not None
    assert smallest.value.interval.low < found.pooled.value < smallest.value.interval.high
    assert smallest.value.value == pytest.approx(found.pooled.value, rel=0.1)


def test_finite_radii_of_two_tokens_follow_the_closed_form() -> None:
    # Along the normal the margin moves by r |w|, along a random u by r |w| cos: a one-dimensional integral.
    w, c = 4 * normal(3) / normal(3).norm(), 0.5
    decode = two_token_readout(w)
    z = torch.zeros(400, 3, dtype=torch.float64)
    points = normal_boundary(decode, z, torch.zeros(400, 1, dtype=torch.int64))
    found = dabi(decode, CATEGORICAL, points, rms=1.0, radii=(c,), num_probes=1, generator=seeded())

    def divergence(margin: Tensor) -> Tensor:
        p = torch.sigmoid(margin)
        return math.log(2) + torch.xlogy(p, p) + torch.xlogy(1 - p, 1 - p)  # p and 1 - p mirror each other

    reach = c * math.sqrt(3) * 4
    cosines = torch.linspace(-1, 1, 4001, dtype=torch.float64)  # uniform on [-1, 1] in three dimensions
    expected = divergence(torch.tensor(reach, dtype=torch.float64)) / divergence(reach * cosines).mean()
    assert found.at_radius[0].value.value == pytest.approx(float(expected), rel=0.03)


def test_local_dabi_of_64_examples_and_4_positions_costs_at_most_150_evaluations() -> None:
    sharp = Counted(SmoothReadout(16, 8, 6, scale=30.0))
    points = normal_boundary(sharp, normal(64, 16), draw_positions(64, 8, 4, seeded()))
    dabi(sharp, CATEGORICAL, points, rms=1.0, radii=(), generator=seeded())
    assert sharp.cost / 4 <= 150  # a fourth of the 256 points at a time
    limit = 21 * 3 + 9 * 3  # if every point took all its Newton steps
    assert limit <= 150


def test_bootstrap_is_over_examples_and_says_how_many() -> None:
    decode, z = SmoothReadout(8, 4, 6), normal(20, 8)
    found = dabi(
        decode, CATEGORICAL, data_points(decode, z, draw_positions(20, 4, 3, seeded())), rms=rms(z), generator=seeded()
    )
    assert (found.num_examples, found.num_points, found.dabi.num_examples) == (20, 60, 20)
    for estimate in (found.dabi, found.pooled, found.median, *(one.value for one in found.at_radius)):
        assert estimate.value is not None
        assert estimate.interval is not None
        assert estimate.interval.low <= estimate.value <= estimate.interval.high


def test_one_seed_gives_one_result() -> None:
    decode, z = SmoothReadout(8, 4, 6), normal(6, 8)
    points = data_points(decode, z, FIRST)
    first, second = (dabi(decode, CATEGORICAL, points, rms=1.0, generator=seeded(5)) for _ in range(2))
    assert first == second


def test_a_constant_decoder_is_undetermined_and_not_a_number_nowhere() -> None:
    decode, z = ConstantReadout(normal(3, 5)), normal(6, 4)
    points = segment_midpoint(z, normal(6, 4, seed=1))
    found = dabi(decode, CATEGORICAL, points, rms=1.0, generator=seeded())
    assert found.num_determined == 0
    assert all(row.estimate.value is None for row in found.rows())
    assert found.picture() is None
    json.dumps(found.to_dict(), allow_nan=False)


def test_points_that_are_not_accepted_do_not_count() -> None:
    decode, z = SmoothReadout(8, 4, 6), normal(6, 8)
    points = data_points(decode, z, FIRST)
    some = replace(points, accepted=torch.arange(6)[:, None] < 4)
    first = BoundaryPoints(*(t[:4] for t in (points.z, points.direction, points.accepted)), FIRST[:4], "normal", "data")
    assert local(decode, some).dabi.value == pytest.approx(value(local(decode, first)))
    assert local(decode, some).accepted == pytest.approx(4 / 6)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_half_precision_readouts_under_any_gradient_mode_give_a_result(mode: type) -> None:
    decode = SmoothReadout(8, 4, 6, dtype=torch.float32)
    with mode():
        z = normal(30, 8, dtype=torch.float32)
        positions = draw_positions(30, 4, 1, seeded())
        half = dabi(
            lambda z: decode(z).bfloat16(), CATEGORICAL, data_points(lambda z: decode(z).bfloat16(), z, positions),
            rms=1.0, num_probes=None, generator=seeded(),
        )  # fmt: skip
        whole = local(decode, data_points(decode, z, positions))
    assert value(half) == pytest.approx(value(whole), rel=0.1)


def test_rows_and_picture_carry_the_name_the_radius_and_n() -> None:
    decode, z = SmoothReadout(8, 4, 6), normal(6, 8)
    found = dabi(decode, CATEGORICAL, data_points(decode, z, FIRST), rms=2.0, generator=seeded(), name="dabi_data")
    names = ["dabi_data", "dabi_data_fraction", "dabi_data_pooled", "dabi_data_median"]
    names += [f"dabi_data_at_{c}" for c in ("0.001", "0.01", "0.1")]
    assert [row.name for row in found.rows()] == names
    assert all("n = 8" in row.note for row in found.rows())
    picture = found.picture()
    assert picture is not None
    assert picture.series[0].x == (0.001, 0.01, 0.1)
    assert "arXiv:2606.30705" in found.to_dict()["definition"]
    json.dumps(found.to_dict(), allow_nan=False)


def test_bad_numbers_are_refused() -> None:
    decode, points = two_token_readout(normal(4)), segment_midpoint(normal(2, 4), normal(2, 4, seed=1))
    for options in ({"rms": 0.0}, {"rms": 1.0, "radii": (0.0,)}, {"rms": 1.0, "num_isotropic": 0}):
        with pytest.raises(ValueError, match="positive rms"):
            dabi(decode, CATEGORICAL, points, generator=seeded(), **options)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="num_probes is 0"):
        dabi(decode, CATEGORICAL, points, rms=1.0, num_probes=0, generator=seeded())
