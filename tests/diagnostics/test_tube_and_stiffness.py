"""Tube and stiffness against mixtures of Gaussians in closed form, and input that determines nothing."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from fewstep.diagnostics.margins import margins
from fewstep.diagnostics.result import Result
from fewstep.diagnostics.trajectories import stiffness
from fewstep.diagnostics.tube import tube
from fewstep.lab.theory.mixtures import Mixture
from fewstep.paths import Path, linear_path, variance_preserving_path
from tests.diagnostics.decoders import heights, normal, plain, seeded

PATHS = [linear_path(), variance_preserving_path()]
each_path = pytest.mark.parametrize("path", PATHS, ids=["linear", "vp"])
TIMES = (0.3, 0.5, 0.7, 0.85)


normal_cdf = torch.special.ndtr


class Positions:
    """Latents (B, L, n) of L independent draws of a mixture, with the readout of the nearest mode."""

    def __init__(self, mixture: Mixture) -> None:
        self.mixture, self.path = mixture, mixture.path

    def logits(self, x: Tensor) -> Tensor:
        """(B, L, M)."""
        return x @ self.mixture.means.T - self.mixture.means.square().sum(-1) / 2

    def denoise(self, x_t: Tensor, t: Tensor) -> Tensor:
        """Posterior mean (B, L, n)."""
        flat = x_t.flatten(0, 1)
        return self.mixture.denoise(flat, t.repeat_interleave(x_t.shape[1])).reshape(x_t.shape)


def two_token_mixture(path: Path, half_distance: float, width: float) -> Positions:
    """Two Gaussians on a line, at plus and minus ``half_distance``.

    By symmetry the posterior mean has the sign of x_t: it flips a token with probability Phi(-|z| / s), exactly as
    isotropic noise does.
    """
    means = torch.tensor([[-half_distance], [half_distance]], dtype=torch.float64)
    return Positions(Mixture(path, means, width))


def folded_tube_mass(reach: Tensor, half_distance: float, width: float) -> Tensor:
    """Share of the two-token mixture that lies within ``reach`` of its boundary at 0."""
    return normal_cdf((reach - half_distance) / width) - normal_cdf((-reach - half_distance) / width)


def _all_positions(num_examples: int, num_tokens: int) -> Tensor:
    return torch.arange(num_tokens).expand(num_examples, -1)


def _of_mixture(mixture: Positions, z: Tensor, times=TIMES, repeats: int = 1, seed: int = 0, positions=None) -> Result:
    z = z.repeat(repeats, 1, 1)  # each with noise of its own
    positions = _all_positions(*z.shape[:2]) if positions is None else positions
    return tube(
        mixture.logits,
        mixture.denoise,
        mixture.path,
        z,
        positions,
        times,
        distances=margins(mixture.logits, z, positions).distance,
        generator=seeded(seed),
    )


def _scales(result: Result) -> Tensor:
    return torch.tensor(result.curves["flips"].x, dtype=torch.float64)


def _two_token_data(num_examples: int, num_tokens: int, spread: float) -> Tensor:
    sign = torch.where(normal(num_examples, num_tokens, 1, seed=8) > 0, 1.0, -1.0)
    return sign + spread * normal(num_examples, num_tokens, 1, seed=9)


def test_isotropic_steps_of_the_posterior_means_length_spread_over_all_positions() -> None:
    z = _two_token_data(200, 100, 0.0)
    result = _of_mixture(two_token_mixture(linear_path(), 1.0, 0.0), z)
    x_0 = torch.linspace(-8, 8, 20001, dtype=torch.float64)
    density = torch.exp(-(x_0**2) / 2)
    for t, rate in zip(result.facts["times"], heights(result, "matched").tolist(), strict=True):
        x1_hat = (t * (t + (1 - t) * x_0) / (1 - t) ** 2).tanh()  # posterior mean of the point at 1
        squared = ((x1_hat - 1) ** 2 * density).sum() / density.sum()
        assert rate == pytest.approx(float(normal_cdf(-1 / squared.sqrt())), abs=0.012)


@each_path
@pytest.mark.parametrize("spread", [0.0, 0.4])
def test_data_flip_by_their_own_distance_and_the_tube_is_a_folded_gaussian(path: Path, spread: float) -> None:
    z = _two_token_data(150, 40, spread)
    result = _of_mixture(two_token_mixture(path, 1.0, spread), z, repeats=3)
    scales = _scales(result)
    assert result.facts["num_points"] == 3 * 6000
    t = torch.tensor(sorted(TIMES, reverse=True), dtype=torch.float64)
    torch.testing.assert_close(
        scales, (1 - t) / t if path is PATHS[0] else 1 / (math.pi * t / 2).tan(), rtol=1e-6, atol=0
    )
    exact = normal_cdf(-z.abs().flatten()[:, None] / scales).mean(0)
    torch.testing.assert_close(heights(result, "flips"), exact, atol=0.012, rtol=0)
    torch.testing.assert_close(heights(result, "isotropic"), exact, atol=0.012, rtol=0)
    if spread:
        mass = folded_tube_mass(result["tube_c"].value * scales, 1.0, spread)
        torch.testing.assert_close(heights(result, "mass"), mass, atol=0.02, rtol=0)


def test_c_minimises_the_squared_distance_between_the_curves_in_closed_form() -> None:
    path, spread = linear_path(), 0.4
    z = _two_token_data(300, 40, spread)
    result = _of_mixture(two_token_mixture(path, 1.0, spread), z, repeats=4)
    scales = _scales(result)
    far = torch.linspace(-6, 6, 4001, dtype=torch.float64) * spread + 1  # the data's density, by quadrature
    density = torch.exp(-(((far - 1) / spread) ** 2) / 2)
    phi = (normal_cdf(-far.abs() / scales[:, None]) * density).sum(1) / density.sum()
    candidates = torch.linspace(0.05, 3, 6000, dtype=torch.float64)
    errors = (folded_tube_mass(candidates[:, None] * scales, 1.0, spread) - phi).square().mean(1).sqrt()
    assert result["tube_c"].value == pytest.approx(float(candidates[errors.argmin()]), rel=0.05)
    assert result["tube_fit_error"].value == pytest.approx(float(errors.min()), abs=0.01)
    assert result["tube_c"].interval.low < result["tube_c"].value < result["tube_c"].interval.high


def test_one_seed_gives_one_result_also_under_inference_mode_and_only_the_positions_count() -> None:
    mixture, z, first = two_token_mixture(linear_path(), 1.0, 0.4), _two_token_data(10, 5, 0.4), _all_positions(10, 2)
    once = _of_mixture(mixture, z, positions=first)
    with torch.inference_mode():
        assert _of_mixture(mixture, z.clone(), positions=first) == once
    assert once != _of_mixture(mixture, z, positions=first, seed=1)
    z[:, 2:] = 1e3  # never flips
    assert heights(_of_mixture(mixture, z, positions=first), "isotropic").any()
    assert not heights(_of_mixture(mixture, z, positions=first + 2), "isotropic").any()


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
    assert 0 < heights(result, "flips")[1] < 1
    assert result["tube_c"].value == pytest.approx(c, rel=1e-2)
    assert result["tube_fit_error"].value < 1e-3
    torch.testing.assert_close(heights(result, "mass"), heights(result, "flips"), atol=2e-3, rtol=0)
    assert result["tube_c"].interval.low <= result["tube_c"].value <= result["tube_c"].interval.high


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
    assert result["tube_c"].value is None and result["tube_fit_error"].value is None
    assert len(heights(result, "flips")) == len(heights(result, "isotropic")) == len(TIMES)
    assert "undetermined" in result.rows[0].note
    assert result.curves["mass"].x == ()
    plain(result)


@pytest.mark.parametrize("times", [(), (0.0, 0.5), (0.5, 1.0), (-0.1,), (float("nan"),), (1 - 1e-12,)])
def test_times_outside_the_open_interval_are_refused(times: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="all strictly between 0 and 1"):
        _of_mixture(two_token_mixture(linear_path(), 1.0, 0.3), _two_token_data(3, 4, 0.3), times=times)


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
    assert all(0 <= share <= 1 for line in result.curves.values() for share in line.y)
    assert result["tube_c"].value is None or (result["tube_c"].value > 0 and 0 <= result["tube_fit_error"].value <= 1)


def test_a_linear_velocity_has_its_largest_singular_value_not_its_largest_eigenvalue() -> None:
    shear = torch.tensor([[1.0, 10.0], [0.0, 1.0]], dtype=torch.float64)
    largest = float(torch.linalg.svdvals(shear)[0])
    result = stiffness(lambda x, t: x @ shear.T, [(0.5, normal(4, 2))], generator=seeded())
    assert float(heights(result, "stiffness")[0]) == pytest.approx(largest, rel=1e-9)
    assert result["stiffness_peak"].value == result.curves["stiffness"].y[0]
    short = stiffness(lambda x, t: x @ shear.T, [(0.5, normal(4, 2))], num_iterations=1, generator=seeded())
    assert short["stiffness_peak"].value < largest and short.facts["last_growth"] == 1  # from below


class _Attending(nn.Module):
    """A small attention network in float32, told the time."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(4, 12)
        generator = seeded(5)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(2 * torch.randn(parameter.shape, generator=generator))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """(B, K, 4)."""
        q, k, v = self.mix(x * t[:, None, None]).unsqueeze(1).chunk(3, -1)
        return x + nn.functional.scaled_dot_product_attention(q, k, v)[:, 0]


def test_an_attention_network_in_float32_has_the_largest_singular_value_of_its_whole_jacobian() -> None:
    network, x = _Attending(), normal(3, 5, 4, dtype=torch.float32)
    result = stiffness(network, [(0.3, x)], num_iterations=200, generator=seeded())
    t = torch.full((1,), 0.3, dtype=torch.float64)
    jacobians = [
        torch.autograd.functional.jacobian(lambda row: network.double()(row, t), row[None].double()).reshape(20, 20)
        for row in x
    ]
    largest = torch.linalg.svdvals(torch.stack(jacobians))[:, 0].mean()
    assert float(heights(result, "stiffness")[0]) == pytest.approx(float(largest), rel=5e-3)
    network = network.float()
    with torch.inference_mode():
        again = stiffness(network, [(0.3, x.clone())], num_iterations=200, generator=seeded())
    assert again == result
    assert all(parameter.grad is None and parameter.requires_grad for parameter in network.parameters())


@pytest.mark.parametrize("velocity", [lambda x, t: torch.ones_like(x), lambda x, t: 0 * x], ids=["constant", "zero"])
def test_a_velocity_that_ignores_the_state_has_stiffness_0(velocity) -> None:
    result = stiffness(velocity, [(0.0, normal(2, 3)), (1.0, normal(2, 3))], generator=seeded())
    assert list(result.curves["stiffness"].y) == [0, 0]
    assert result["stiffness_peak"].value == 0 and result.facts["last_growth"] == 0
    plain(result)


def test_a_velocity_that_is_not_finite_is_undetermined_not_nan() -> None:
    def velocity(x: Tensor, t: Tensor) -> Tensor:
        return x * (torch.nan if float(t[0]) == 1 else 2.0)

    result = stiffness(velocity, [(0.5, normal(2, 3)), (1.0, normal(2, 3))], generator=seeded())
    assert float(heights(result, "stiffness")[0]) == pytest.approx(2)
    assert (
        len(result.curves["stiffness"].y) == 1
        and result["stiffness_peak"].value is None
        and result.facts["peak_time"] is None
    )
    assert result.curves["stiffness"].x == (0.5,)
    plain(result)
