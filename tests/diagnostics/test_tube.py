"""Tube: flip rates and tube mass of mixtures in closed form, the fit, and input that determines nothing."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fewstep.diagnostics.margins import margins
from fewstep.diagnostics.tube import Tube, tube
from fewstep.paths import Path, linear_path, variance_preserving_path
from tests.diagnostics.processes import (
    Mixture,
    folded_tube_mass,
    normal,
    normal_cdf,
    plain,
    seeded,
    two_token_mixture,
)

PATHS = [linear_path(), variance_preserving_path()]
each_path = pytest.mark.parametrize("path", PATHS, ids=["linear", "vp"])
TIMES = (0.3, 0.5, 0.7, 0.85)


def _all_positions(num_examples: int, num_tokens: int) -> Tensor:
    return torch.arange(num_tokens).expand(num_examples, -1)


def _of_mixture(mixture: Mixture, z: Tensor, times=TIMES, num_noises: int = 1, seed: int = 0) -> Tube:
    positions = _all_positions(*z.shape[:2])
    return tube(
        mixture.logits,
        mixture.denoise,
        mixture.path,
        z,
        positions,
        times,
        distances=margins(mixture.logits, z, positions).distance,
        num_noises=num_noises,
        generator=seeded(seed),
    )


def _values(estimates) -> Tensor:
    return torch.tensor([one.value for one in estimates], dtype=torch.float64)


def _two_token_data(num_examples: int, num_tokens: int, spread: float) -> Tensor:
    sign = torch.where(normal(num_examples, num_tokens, 1, seed=8) > 0, 1.0, -1.0)
    return sign + spread * normal(num_examples, num_tokens, 1, seed=9)


@each_path
def test_noise_scales_are_sigma_over_alpha_and_rise(path: Path) -> None:
    result = _of_mixture(two_token_mixture(path, 1.0, 0.2), _two_token_data(5, 4, 0.2))
    t = torch.tensor(result.times, dtype=torch.float64)
    expected = (1 - t) / t if path is PATHS[0] else 1 / (math.pi * t / 2).tan()
    torch.testing.assert_close(torch.tensor(result.noise_scales, dtype=torch.float64), expected, rtol=1e-6, atol=0)
    assert result.times == tuple(sorted(TIMES, reverse=True))
    assert list(result.noise_scales) == sorted(result.noise_scales)


@each_path
def test_flips_of_two_points_are_those_of_a_gaussian_tail_for_posterior_mean_and_noise_alike(path: Path) -> None:
    result = _of_mixture(two_token_mixture(path, 1.0, 0.0), _two_token_data(100, 50, 0.0), num_noises=4)
    exact = normal_cdf(-1 / torch.tensor(result.noise_scales, dtype=torch.float64))
    assert float(exact.max()) > 0.3 and float(exact.min()) < 0.01
    for curve in (result.flip_rates, result.isotropic_flip_rates):
        torch.testing.assert_close(_values(curve), exact, atol=0.012, rtol=0)
    assert result.num_points == 5000


def test_isotropic_steps_of_the_posterior_means_length_flip_half_as_often_on_a_line() -> None:
    # Whatever reaches over the boundary does so in one of two directions.
    result = _of_mixture(two_token_mixture(linear_path(), 1.0, 0.0), _two_token_data(5000, 1, 0.0), num_noises=4)
    exact = normal_cdf(-1 / torch.tensor(result.noise_scales, dtype=torch.float64))
    torch.testing.assert_close(_values(result.matched_flip_rates), exact / 2, atol=0.012, rtol=0)


def test_isotropic_steps_of_the_posterior_means_length_spread_over_all_positions() -> None:
    z = _two_token_data(200, 100, 0.0)
    result = _of_mixture(two_token_mixture(linear_path(), 1.0, 0.0), z)
    x_0 = torch.linspace(-8, 8, 20001, dtype=torch.float64)
    density = torch.exp(-(x_0**2) / 2)
    for t, rate in zip(result.times, result.matched_flip_rates, strict=True):
        x1_hat = (t * (t + (1 - t) * x_0) / (1 - t) ** 2).tanh()  # posterior mean of the point at 1
        squared = ((x1_hat - 1) ** 2 * density).sum() / density.sum()
        assert rate.value == pytest.approx(float(normal_cdf(-1 / squared.sqrt())), abs=0.012)


@each_path
def test_spread_data_flip_by_their_own_distance_and_the_tube_is_a_folded_gaussian(path: Path) -> None:
    spread, z = 0.4, _two_token_data(150, 40, 0.4)
    result = _of_mixture(two_token_mixture(path, 1.0, spread), z, num_noises=2)
    scales = torch.tensor(result.noise_scales, dtype=torch.float64)
    exact = normal_cdf(-z.abs().flatten()[:, None] / scales).mean(0)
    torch.testing.assert_close(_values(result.flip_rates), exact, atol=0.012, rtol=0)
    torch.testing.assert_close(_values(result.isotropic_flip_rates), exact, atol=0.012, rtol=0)
    mass = folded_tube_mass(result.c.value * scales, 1.0, spread)
    torch.testing.assert_close(_values(result.tube_masses), mass, atol=0.02, rtol=0)


def test_c_minimises_the_squared_distance_between_the_curves_in_closed_form() -> None:
    path, spread = linear_path(), 0.4
    z = _two_token_data(300, 40, spread)
    result = _of_mixture(two_token_mixture(path, 1.0, spread), z, num_noises=4)
    scales = torch.tensor(result.noise_scales, dtype=torch.float64)
    far = torch.linspace(-6, 6, 4001, dtype=torch.float64) * spread + 1  # the data's density, by quadrature
    density = torch.exp(-(((far - 1) / spread) ** 2) / 2)
    phi = (normal_cdf(-far.abs() / scales[:, None]) * density).sum(1) / density.sum()
    candidates = torch.linspace(0.05, 3, 6000, dtype=torch.float64)
    errors = (folded_tube_mass(candidates[:, None] * scales, 1.0, spread) - phi).square().mean(1).sqrt()
    assert result.c.value == pytest.approx(float(candidates[errors.argmin()]), rel=0.05)
    assert result.fit_error.value == pytest.approx(float(errors.min()), abs=0.01)
    assert result.c.interval.low < result.c.value < result.c.interval.high


class _SharpTube:
    """A denoiser that flips exactly the points closer to 0 than ``c`` s, knowing the data."""

    def __init__(self, path: Path, z: Tensor, c: float) -> None:
        self.path, self.z, self.c = path, z, c

    def denoise(self, x_t: Tensor, t: Tensor) -> Tensor:
        """z, or its mirror image."""
        alpha, sigma = self.path.alpha_sigma(t.double(), self.z)
        return torch.where(self.z.abs() <= self.c * sigma / alpha, -self.z, self.z)


@each_path
@pytest.mark.parametrize("c", [0.02, 1.0, 7.0])
def test_flips_that_are_the_tube_are_fitted_without_error(path: Path, c: float) -> None:
    z, scale = _two_token_data(60, 30, 0.4), 0.4 * c
    z = z * scale  # so that some but not all points lie within the tube
    positions = _all_positions(60, 30)
    result = tube(
        lambda z: torch.cat([-z, z], -1),
        _SharpTube(path, z, c).denoise,
        path,
        z,
        positions,
        TIMES,
        distances=z.abs()[..., 0],
        generator=seeded(),
    )
    assert 0 < result.flip_rates[1].value < 1
    assert result.c.value == pytest.approx(c, rel=1e-2)
    assert result.fit_error.value < 1e-3
    torch.testing.assert_close(_values(result.tube_masses), _values(result.flip_rates), atol=2e-3, rtol=0)
    assert result.c.interval.low <= result.c.value <= result.c.interval.high


def test_a_tube_twice_as_far_has_half_the_c_for_the_same_flips() -> None:
    mixture, z = two_token_mixture(linear_path(), 1.0, 0.4), _two_token_data(60, 20, 0.4)
    positions, distances = _all_positions(60, 20), z.abs()[..., 0]
    near, far = (
        tube(
            mixture.logits, mixture.denoise, mixture.path, z, positions, TIMES, distances=d, generator=seeded()
        ).c.value
        for d in (distances, 2 * distances)
    )
    assert far == pytest.approx(2 * near, rel=1e-9)


def test_only_the_given_positions_are_looked_at() -> None:
    mixture, z = two_token_mixture(linear_path(), 1.0, 0.0), _two_token_data(40, 6, 0.0)
    z[:, :3] = 1e3  # never flips
    positions = torch.tensor([[0, 2]]).expand(40, 2)
    result = tube(
        mixture.logits,
        mixture.denoise,
        mixture.path,
        z,
        positions,
        TIMES,
        distances=torch.ones(40, 2),
        generator=seeded(),
    )
    assert not _values(result.isotropic_flip_rates).any()
    others = tube(
        mixture.logits,
        mixture.denoise,
        mixture.path,
        z,
        positions + 3,
        TIMES,
        distances=torch.ones(40, 2),
        generator=seeded(),
    )
    assert others.isotropic_flip_rates[-1].value > 0.2


def test_many_tokens_are_told_apart_by_the_nearest_centre() -> None:
    centres = 2 * normal(7, 4)
    mixture = Mixture(linear_path(), centres, 0.1)
    z = centres[torch.randint(7, (20, 5), generator=seeded())] + 0.1 * normal(20, 5, 4, seed=3)
    result = _of_mixture(mixture, z, times=(0.05, 0.5, 0.98))
    assert result.flip_rates[0].value == 0
    assert 0.5 < result.flip_rates[-1].value <= 6 / 7 + 0.1  # next to no data left: a guess among seven
    plain(result)


def test_rows_curves_and_json_carry_the_fit_and_every_curve() -> None:
    result = _of_mixture(two_token_mixture(linear_path(), 1.0, 0.4), _two_token_data(20, 10, 0.4))
    assert [row.name for row in result.rows()] == ["tube_c", "tube_fit_error"]
    picture = result.picture()
    assert len(picture.series) == 4
    assert all(line.x == result.noise_scales for line in picture.series)
    assert f"c = {result.c.value:.3g}" in picture.series[0].label
    assert len(plain(result)["flip_rates"]) == len(TIMES)


def test_one_seed_gives_one_result_also_under_inference_mode() -> None:
    mixture, z = two_token_mixture(linear_path(), 1.0, 0.4), _two_token_data(10, 5, 0.4)
    positions, distances = _all_positions(10, 5), z.abs()[..., 0]

    def run(z: Tensor, seed: int) -> Tube:
        return tube(
            mixture.logits,
            mixture.denoise,
            mixture.path,
            z,
            positions,
            TIMES,
            distances=distances,
            generator=seeded(seed),
        )

    first = run(z, 0)
    with torch.inference_mode():
        assert run(z.clone(), 0) == first
    assert run(z, 1) != first


@pytest.mark.parametrize("case", ["constant_decoder", "one_token_vocabulary", "all_flip", "no_boundary_known"])
def test_where_every_c_fits_alike_it_is_undetermined_and_says_so(case: str) -> None:
    z = _two_token_data(10, 3, 0.3)
    decode = {
        "constant_decoder": lambda z: torch.zeros(*z.shape[:2], 4),
        "one_token_vocabulary": lambda z: z,
    }.get(case, lambda z: torch.cat([-z, z], -1))
    distances = torch.ones(10, 3) if case == "all_flip" else torch.full((10, 3), torch.inf)
    result = tube(
        decode,
        (lambda x_t, t: -z) if case == "all_flip" else (lambda x_t, t: x_t),
        linear_path(),
        z,
        _all_positions(10, 3),
        TIMES,
        distances=distances,
        generator=seeded(),
    )
    assert result.c.value is None and result.fit_error.value is None
    assert all(one.value is not None for one in result.flip_rates + result.isotropic_flip_rates)
    assert "undetermined" in result.rows()[0].note
    assert result.picture().series[0].x == ()
    plain(result)


def test_latents_on_a_boundary_always_count_to_the_tube() -> None:
    mixture, z = two_token_mixture(linear_path(), 1.0, 0.3), _two_token_data(30, 4, 0.3)
    z[:, 0] = 0
    result = _of_mixture(mixture, z)
    assert all(0.25 <= one.value <= 1 for one in result.tube_masses)
    plain(result)


@pytest.mark.parametrize("times", [(), (0.0, 0.5), (0.5, 1.0), (-0.1,), (float("nan"),), (1 - 1e-12,)])
def test_times_outside_the_open_interval_are_refused(times: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="all strictly between 0 and 1"):
        _of_mixture(two_token_mixture(linear_path(), 1.0, 0.3), _two_token_data(3, 4, 0.3), times=times)


def test_bad_distances_positions_and_noises_are_refused() -> None:
    mixture, z = two_token_mixture(linear_path(), 1.0, 0.3), _two_token_data(3, 4, 0.3)
    every = _all_positions(3, 4)

    def run(distances: Tensor, positions: Tensor = every, num_noises: int = 1) -> None:
        tube(
            mixture.logits,
            mixture.denoise,
            mixture.path,
            z,
            positions,
            TIMES,
            distances=distances,
            num_noises=num_noises,
            generator=seeded(),
        )

    for distances in (torch.ones(3, 3), torch.full((3, 4), torch.nan), -torch.ones(3, 4)):
        with pytest.raises(ValueError, match="distances have shape"):
            run(distances)
    with pytest.raises(ValueError, match="positions have shape"):
        run(torch.ones(3, 4), torch.zeros(2, 4, dtype=torch.long))
    with pytest.raises(ValueError, match="num_noises is 0"):
        run(torch.ones(3, 4), num_noises=0)


@settings(deadline=None, max_examples=15)
@given(
    seed=st.integers(0, 2**31),
    num_examples=st.integers(1, 4),
    num_tokens=st.integers(1, 3),
    time=st.floats(0.001, 0.999),
    scale=st.sampled_from([0.0, 1e-6, 1.0, 1e6]),
)
def test_shares_stay_within_0_and_1_and_nothing_is_nan(
    seed: int, num_examples: int, num_tokens: int, time: float, scale: float
) -> None:
    z = scale * normal(num_examples, num_tokens, 1, seed=seed)
    result = _of_mixture(two_token_mixture(linear_path(), 1.0, 0.3), z, times=(time, 0.5), seed=seed)
    plain(result)
    shares = result.flip_rates + result.isotropic_flip_rates + result.matched_flip_rates + result.tube_masses
    assert all(one.value is None or 0 <= one.value <= 1 for one in shares)
    assert result.c.value is None or (result.c.value > 0 and 0 <= result.fit_error.value <= 1)
