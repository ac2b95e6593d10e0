"""Responses and DABI against their closed forms; whatever the decoder, numbers keep their bounds."""

import math
from dataclasses import replace
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fewstep.diagnostics import response, result
from fewstep.diagnostics.boundary import (
    BoundaryPoints,
    data_points,
    normal_boundary,
    segment_boundary,
    segment_points,
    worst_direction,
)
from fewstep.diagnostics.dabi import RADII, dabi, fisher_trace
from fewstep.diagnostics.decoding import Decode, draw_positions, rms
from fewstep.diagnostics.displacement import dabi_flip, noise_robustness
from fewstep.diagnostics.margins import boundary_distance, margins
from fewstep.diagnostics.response import CATEGORICAL, CONTINUOUS
from fewstep.diagnostics.result import Result
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

FIRST = torch.zeros(6, 1, dtype=torch.int64)


def local(decode: Decode, points: BoundaryPoints, num_probes: int | None = None) -> Result:
    """The local limit alone."""
    return dabi(decode, CATEGORICAL, points, rms=1.0, radii=(), num_probes=num_probes, generator=seeded())


def value(result: Result) -> float:
    assert result["dabi"].value is not None
    return result["dabi"].value


@pytest.mark.parametrize("num_probes", [None, 3])
def test_one_position_of_two_tokens_has_dabi_n_wherever_it_is_measured(num_probes: int | None) -> None:
    decode, z = two_token_readout(normal(7)), normal(6, 7, seed=1)
    for points in (normal_boundary(decode, z, FIRST), data_points(margins(decode, z, FIRST), z)):
        found = local(decode, points, num_probes)
        assert value(found) == pytest.approx(7, rel=1e-12)
        assert found["dabi_fraction"].value == pytest.approx(1, rel=1e-12)
        assert found["dabi_pooled"].value == pytest.approx(7, rel=1e-12)


@pytest.mark.parametrize(("second", "expected"), [(0.0, 3), (40.0, 6)], ids=["at_a_boundary", "saturated"])
def test_two_orthogonal_positions_share_the_sensitivity_and_a_saturated_second_one_has_none(
    second: float, expected: float
) -> None:
    a, b = torch.linalg.qr(normal(6, 2))[0].T * 3
    decode = two_token_readout(a, b, bias=torch.tensor([0.0, second], dtype=torch.float64))
    points = normal_boundary(decode, torch.zeros(6, 6, dtype=torch.float64), FIRST)
    assert value(local(decode, points)) == pytest.approx(expected)


def test_a_linear_readout_of_many_tokens_has_the_closed_form_at_any_point() -> None:
    decode = LinearReadout(normal(3, 7, 5), normal(3, 7, seed=1))
    z = normal(6, 5, seed=2)
    points = data_points(margins(decode, z, FIRST), z)
    fisher, u = decode.fisher(z), points.direction[:, 0]
    ratios = 5 * torch.einsum("bn,bnm,bm->b", u, fisher, u) / fisher.diagonal(dim1=1, dim2=2).sum(1)
    assert value(local(decode, points)) == pytest.approx(float(ratios.mean()))
    assert local(decode, points)["dabi_median"].value == pytest.approx(float(torch.quantile(ratios, 0.5)))


def test_an_orthonormal_decoder_has_dabi_one_in_every_direction_and_at_every_radius() -> None:
    basis = torch.linalg.qr(normal(9, 5))[0].T
    points = segment_points(normal(6, 5), normal(6, 5, seed=1), "midpoint")
    found = dabi(lambda z: z @ basis, CONTINUOUS, points, rms=1.0, num_probes=None, generator=seeded())
    assert value(found) == pytest.approx(1)
    assert [found[f"dabi_at_{c}"].value for c in RADII] == pytest.approx([1, 1, 1])


def test_random_probes_agree_with_the_exact_trace() -> None:
    decode, z = SmoothReadout(24, 6, 8), normal(200, 24)
    (column,) = data_points(margins(decode, z, draw_positions(200, 6, 1, seeded())), z).columns()
    along, exact = fisher_trace(decode, CATEGORICAL, *column, num_probes=None, generator=seeded())
    one, drawn = (fisher_trace(decode, CATEGORICAL, *column, num_probes=num, generator=seeded(7)) for num in (12, 400))
    torch.testing.assert_close(one[0], along)
    near, far = ((found[1] / exact - 1).square().mean().sqrt() for found in (drawn, one))
    assert near < 0.05 and far / near == pytest.approx((400 / 12) ** 0.5, rel=0.3)


def test_intervals_are_over_examples_and_one_seed_gives_one_result() -> None:
    decode, z = SmoothReadout(8, 4, 6), normal(20, 8)
    points = data_points(margins(decode, z, draw_positions(20, 4, 3, seeded())), z)
    found, again = (dabi(decode, CATEGORICAL, points, rms=rms(z), generator=seeded(5)) for _ in range(2))
    assert found == again
    assert (found.facts["num_examples"], found.facts["num_points"], found["dabi"].num_examples) == (20, 60, 20)
    for estimate in (row.estimate for row in found.rows):
        assert estimate.interval.low <= estimate.value <= estimate.interval.high


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
    assert found["dabi_at_0.5"].value == pytest.approx(float(expected), rel=0.03)


def test_a_constant_decoder_is_undetermined_and_not_a_number_nowhere() -> None:
    decode, z = ConstantReadout(normal(3, 5)), normal(6, 4)
    points = segment_points(z, normal(6, 4, seed=1), "midpoint")
    found = dabi(decode, CATEGORICAL, points, rms=1.0, generator=seeded())
    assert found.facts["num_determined"] == 0
    assert all(row.estimate.value is None for row in found.rows)
    assert found.picture() is None
    plain(found)


def test_points_that_are_not_accepted_do_not_count() -> None:
    decode, z = SmoothReadout(8, 4, 6), normal(6, 8)
    points = data_points(margins(decode, z, FIRST), z)
    some = replace(points, accepted=torch.arange(6)[:, None] < 4)
    first = BoundaryPoints(*(t[:4] for t in (points.z, points.direction, points.accepted)), "normal", "data")
    assert value(local(decode, some)) == pytest.approx(value(local(decode, first)))
    assert local(decode, some).facts["accepted"] == pytest.approx(4 / 6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rms": 0.0}, "positive rms"),
        ({"rms": 1.0, "radii": (0.0,)}, "positive radii"),
        ({"rms": 1.0, "num_isotropic": 0}, "at least 1 draw"),
        ({"rms": 1.0, "num_probes": 0}, "num_probes is 0"),
    ],
)
def test_bad_numbers_are_refused(options: dict[str, object], message: str) -> None:
    decode, points = two_token_readout(normal(4)), segment_points(normal(2, 4), normal(2, 4, seed=1), "midpoint")
    with pytest.raises(ValueError, match=message):
        dabi(decode, CATEGORICAL, points, generator=seeded(), **options)  # type: ignore[arg-type]


def test_local_response_of_a_linear_readout_is_its_fisher_information() -> None:
    decode = LinearReadout(normal(3, 7, 5), normal(3, 7, seed=1))
    z, u = normal(4, 5, seed=2), normal(4, 5, seed=3)
    fisher = decode.fisher(z)
    torch.testing.assert_close(CATEGORICAL.local(decode, z, u), torch.einsum("bn,bnm,bm->b", u, fisher, u))
    torch.testing.assert_close(CATEGORICAL.product(decode, z, u), torch.einsum("bnm,bm->bn", fisher, u))


def test_small_radii_tend_to_the_quadratic_form_with_an_error_of_fourth_order() -> None:
    decode, z, u = SmoothReadout(6, 3, 5), normal(4, 6, seed=2), normal(4, 6, seed=3)
    local = CATEGORICAL.local(decode, z, u)
    errors = [(CATEGORICAL.finite(decode, z, u, r) / (r**2 / 2) / local - 1).abs().max() for r in (1e-2, 1e-3)]
    assert errors[0] < 1e-2
    assert errors[1] < errors[0] / 50
    singular = torch.arange(1, 7, dtype=torch.float64)  # a linear decoder is exact at any radius
    scaled, expected = ScalingDecoder(singular), (singular * u).square().sum(1)
    torch.testing.assert_close(CONTINUOUS.local(scaled, z, u), expected)
    torch.testing.assert_close(CONTINUOUS.finite(scaled, z, u, 0.7), 4 * 0.49 * expected)
    torch.testing.assert_close(CONTINUOUS.product(scaled, z, u), singular**2 * u)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_saturated_and_impossible_tokens_give_numbers(dtype: torch.dtype) -> None:
    weight = 1e4 * normal(2, 4, 3, dtype=torch.float32)
    bias = torch.tensor([[0.0, 0.0, 0.0, -math.inf]] * 2)

    def decode(z: torch.Tensor) -> torch.Tensor:
        return LinearReadout(weight, bias)(z).to(dtype)

    z, u = normal(3, 3, dtype=torch.float32), normal(3, 3, seed=1, dtype=torch.float32)
    for value in (CATEGORICAL.finite(decode, z, u, 0.5), CATEGORICAL.local(decode, z, u)):
        assert value.isfinite().all()
        assert (value >= 0).all()
    assert CATEGORICAL.product(decode, z, u).isfinite().all()
    assert (CATEGORICAL.finite(decode, z, u, 0.5) <= 2 * math.log(2) + 1e-12).all()
    z, p = normal(4, 1).abs(), torch.sigmoid(normal(4, 1).abs()[:, 0])
    impossible = CATEGORICAL.local(  # log 0 for positive z: a logit without a derivative
        lambda z: torch.stack([z, torch.zeros_like(z), z.clamp(max=0).neg().log()], -1), z, torch.ones_like(z)
    )
    torch.testing.assert_close(impossible, p * (1 - p))


def test_work_in_slices_gives_the_same_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    decode, z, u = SmoothReadout(6, 3, 5), normal(5, 6, seed=2), normal(5, 6, seed=3)

    def numbers() -> list[Tensor]:
        return [getattr(CATEGORICAL, name)(decode, z, u) for name in ("local", "product")]

    whole, finite = numbers(), CATEGORICAL.finite(decode, z, u, 0.1)
    monkeypatch.setattr(response, "NUMBERS_AT_ONCE", 2 * 15)
    torch.testing.assert_close(numbers(), whole, rtol=1e-12, atol=0)
    torch.testing.assert_close(CATEGORICAL.finite(decode, z, u, 0.1), finite, rtol=1e-12, atol=0)


DTYPES = st.sampled_from([torch.float64, torch.float32, torch.bfloat16])


@settings(deadline=None, max_examples=30)
@given(
    n=st.integers(1, 6),
    vocab_size=st.integers(1, 4),
    exponent=st.floats(-40, 6),
    latent_exponent=st.floats(-6, 4),
    dtype=DTYPES,
    num_probes=st.sampled_from([None, 1, 3]),
    seed=st.integers(0, 1000),
)
def test_every_number_is_finite_and_dabi_lies_between_0_and_n(
    n: int,
    vocab_size: int,
    exponent: float,
    latent_exponent: float,
    dtype: torch.dtype,
    num_probes: int | None,
    seed: int,
) -> None:
    smooth = SmoothReadout(n, 2, vocab_size, scale=10.0**exponent, seed=seed, dtype=torch.float32)
    z, other = (10.0**latent_exponent * normal(3, n, seed=s, dtype=torch.float32) for s in (seed, seed + 1))
    positions = draw_positions(3, 2, 2, seeded(seed))

    def decode(z: torch.Tensor) -> torch.Tensor:
        return smooth(z).to(dtype)

    with mock.patch.object(result, "NUM_RESAMPLES", 5):  # the intervals are not what is tested here
        check(decode, z, other, positions, num_probes)


def check(decode: Decode, z: Tensor, other: Tensor, positions: Tensor, num_probes: int | None) -> None:
    """Every result is fit for JSON, which has no NaN, and DABI keeps its bounds."""
    n, response = z.shape[1], CATEGORICAL
    normals = normal_boundary(decode, z, positions, max_steps=5)
    segments = segment_boundary(decode, z, other, positions, num_steps=5)
    worst = worst_direction(decode, response, segments, num_iterations=2, generator=seeded())
    for points in (normals, segments, worst):
        found = dabi(decode, response, points, rms=1.0, num_isotropic=2, num_probes=num_probes, generator=seeded())
        plain(found)
        for name in ("dabi", "dabi_median", "dabi_pooled"):
            assert found[name].value is None or 0 <= found[name].value <= n * (1 + 1e-12)
    measured = margins(decode, z, positions)
    plain(boundary_distance(measured, z, generator=seeded()))
    plain(dabi_flip(decode, z, positions, measured, num_isotropic=2, generator=seeded()))
    ids = decode(z).argmax(-1)
    plain(noise_robustness(decode, z, ids, positions, measured, levels=(0.0, 1.0), generator=seeded()))
