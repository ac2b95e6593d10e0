"""Cells, boundaries and the theorem curves: closed forms where there are some, and diagnostics that agree with them."""

import math

import pytest
import torch
from scipy.integrate import quad
from scipy.stats import norm
from torch import Tensor

from fewstep.diagnostics.margins import margins
from fewstep.diagnostics.result import Result, Series
from fewstep.diagnostics.trajectories import stiffness
from fewstep.diagnostics.tube import tube
from fewstep.lab.theory.geometry import (
    boundary_densities,
    boundary_distances,
    least_boundary,
    simplex,
    sphere,
    times_of_scales,
)
from fewstep.lab.theory.mixtures import Mixture
from fewstep.lab.theory.theorems import (
    coarea_curve,
    dimension_curve,
    flips_and_tube,
    flips_curve,
    hierarchy_curve,
    mean_line,
    modes_curve,
    peak_stiffness,
    power_law,
    surface_curve,
)
from fewstep.paths import Path, linear_path
from tests.diagnostics.decoders import seeded
from tests.samplers.bases import PATHS, each_path


def values(study: Result) -> dict[str, float]:
    return {row.name: row.estimate.value for row in study.rows}


def test_distance_to_a_cells_boundary_is_what_a_walk_to_it_takes() -> None:
    means = sphere(6, 3, seeded())
    x = torch.randn(50, 3, generator=seeded(1), dtype=torch.float64)
    distance = boundary_distances(x, means)
    directions = sphere(4000, 3, seeded(2))
    cells = torch.cdist(x, means).argmin(1)
    left = 0
    for point, reach, cell in zip(x, distance, cells, strict=True):
        assert bool((torch.cdist(point + 0.999 * reach * directions, means).argmin(1) == cell).all())
        # And no farther: some direction leaves the cell a little beyond.
        left += bool((torch.cdist(point + 1.05 * reach * directions, means).argmin(1) != cell).any())
    assert left >= 45


def simplex_boundary(num_modes: int) -> float:
    """Of standard normal noise, where one of M coordinates leads: close to sqrt(ln M)."""

    def density(u: float) -> float:
        return math.exp(2 * norm.logpdf(u) + (num_modes - 2) * norm.logcdf(u))

    return num_modes * (num_modes - 1) / math.sqrt(2) * quad(density, -10, 10, points=[0, 2, 4, 6], epsrel=1e-10)[0]


def test_boundary_integral_of_noise_is_the_closed_form_of_a_simplex_and_never_under_the_isoperimetric_one() -> None:
    noise = Mixture(linear_path(), torch.zeros(1, 4, dtype=torch.float64), 1.0)
    integral = mean_line("boundary", [0.0], boundary_densities(noise, simplex(5), 40_000, seeded())[:, None])
    assert integral.low[0] <= simplex_boundary(5) <= integral.high[0]
    assert simplex_boundary(2) == pytest.approx(1 / math.sqrt(2 * math.pi), rel=1e-9)
    for count in (2, 3, 10, 1000, 100_000):
        assert simplex_boundary(count) >= least_boundary(count) * (1 - 1e-9)


@each_path
def test_noise_scale_of_a_time_is_sigma_over_alpha(path: Path) -> None:
    scales = torch.tensor([0.01, 0.3, 1.0, 5.0], dtype=torch.float64)
    t = times_of_scales(path, scales)
    torch.testing.assert_close(path.schedule.sigma(t) / path.schedule.alpha(t), scales)


def test_peak_stiffness_of_two_modes_does_not_depend_on_path_or_unit() -> None:
    means = torch.tensor([[-1.0], [1.0]], dtype=torch.float64)
    first = peak_stiffness(PATHS[0], means, 0.2, 3.0, 32, seeded())
    other = peak_stiffness(PATHS[1], 5 * means, 1.0, 15.0, 32, seeded()) / 5
    torch.testing.assert_close(first, other, rtol=1e-6, atol=1e-9)
    # At noise x the clean estimate is tanh(y / s^2), so the peak along y = 1 + s e is (1 - tanh^2) / s at its highest.
    generator = seeded()
    sign = Mixture(PATHS[0], means).draw_modes(32, generator)
    noise = torch.randn(32, 1, generator=generator, dtype=torch.float64)
    s = torch.logspace(math.log10(0.2), math.log10(3), 4000, dtype=torch.float64)
    by_hand = ((1 - torch.tanh((sign + s * noise) / s**2) ** 2) / s).amax(1)
    torch.testing.assert_close(first, by_hand, rtol=2e-3, atol=0)


def test_exponents_of_power_laws_are_found() -> None:
    x = [1.0, 2.0, 4.0, 8.0]
    noise = 1 + 0.1 * torch.randn(200, 4, generator=seeded(), dtype=torch.float64)
    fit = power_law("p", x, torch.tensor(x).double().sqrt() * noise, 0.5, seeded(1)).estimate
    assert fit.interval.low < 0.5 < fit.interval.high
    assert fit.value == pytest.approx(0.5, abs=0.02)


def test_flips_of_overlapping_data_grow_as_the_tube_with_the_factor_of_a_flat_density() -> None:
    found = values(flips_curve(linear_path(), 20_000, seeded(), num_modes=12, dimension=5))
    name = "T <= 0.1, width 0.6 separations"
    assert found[f"exponent of {name}"] == pytest.approx(1, abs=0.1)
    assert found[f"flips over {name}"] == pytest.approx(1 / math.sqrt(2 * math.pi), abs=0.05)


def test_boundary_tube_and_stiffness_meet_in_one_number() -> None:
    on_boundary, *others = (row.estimate for row in coarea_curve(linear_path(), 200_000, seeded(), num_modes=4).rows)
    for fit in others:
        slack = 3 * (fit.interval.high - fit.interval.low) / 4  # three standard errors
        assert abs(fit.value - on_boundary.value) <= slack + 0.05 * on_boundary.value


def test_peaks_grow_by_the_laws() -> None:
    fixed = values(dimension_curve(linear_path(), 24, seeded(), max_modes=1024))
    assert fixed["exponent of M, n = 1"] == pytest.approx(1, abs=0.05)
    assert fixed["exponent of M, n = 2"] == pytest.approx(0.5, abs=0.05)
    growing = modes_curve(linear_path(), 32, seeded(), max_modes=256)
    assert 0.2 < values(growing)["exponent of ln M, simplex, n = M - 1, all M"] < 0.7
    assert values(hierarchy_curve(linear_path(), 32, seeded(), num_leaves=256))["exponent of B"] < 0


def test_errors_fall_with_steps_and_with_a_wider_cap() -> None:
    found = surface_curve(linear_path(), 40, seeded(), num_modes=8, dimension=4)
    gentle, steep = (found.curves[f"deterministic, cap {cap}"].y for cap in ("4", "256"))
    assert gentle[0] == steep[0] == 1  # one step is the mean of all modes
    assert gentle[-1] > 0.5 > steep[-1] and steep[2] > steep[-1]
    assert found.rows


def logits(x: Tensor, means: Tensor) -> Tensor:
    """Of the nearest-mode readout, one token (B, 1, M)."""
    return (x.flatten(1) @ means.T - means.square().sum(1) / 2)[:, None]


def agrees(curve: Series, k: int, exact: float) -> bool:
    """Within the 95 % interval, widened by half: three standard errors, so that one failure in 20 is not by chance."""
    slack = (curve.high[k] - curve.low[k]) / 4
    return curve.low[k] - slack <= exact <= curve.high[k] + slack


def test_the_diagnostic_tube_agrees_with_the_laboratory_within_its_intervals() -> None:
    path = linear_path()
    means, width = sphere(8, 4, seeded()), 0.4
    law = Mixture(path, means, width)
    z = law.sample(1500, seeded(1))
    scales = torch.tensor([0.05, 0.15, 0.4], dtype=torch.float64)
    positions = torch.zeros(len(z), 1, dtype=torch.long)
    measured = tube(
        lambda x: logits(x, means),
        law.denoise,
        path,
        z,
        positions,
        times_of_scales(path, scales).tolist(),
        distances=boundary_distances(z, means)[:, None],
        generator=seeded(2),
    )
    flips, _ = flips_and_tube(law, scales, 60_000, seeded(3))
    inside = boundary_distances(law.sample(60_000, seeded(4)), means)
    for k, exact in enumerate(flips.double().mean(0)):
        assert agrees(measured.curves["flips"], k, float(exact))
        mass = float((inside <= measured["tube_c"].value * measured.curves["mass"].x[k]).double().mean())
        assert agrees(measured.curves["mass"], k, mass)


def test_the_diagnostics_margin_is_the_exact_distance_where_the_runner_up_is_the_nearest_boundary() -> None:
    means = simplex(5)  # equal distances between all modes: the runner-up's plane is the nearest
    z = torch.randn(40, 4, generator=seeded(), dtype=torch.float64)
    found = margins(lambda x: logits(x, means), z, torch.zeros(40, 1, dtype=torch.long)).distance[:, 0]
    torch.testing.assert_close(found.double(), boundary_distances(z, means), rtol=1e-6, atol=1e-9)


def test_the_diagnostic_stiffness_agrees_with_the_closed_form_within_its_intervals() -> None:
    path = linear_path()
    law = Mixture(path, sphere(8, 4, seeded()), 0.3)
    times = (0.2, 0.5, 0.8)

    def states(num: int, seed: int) -> list[tuple[float, Tensor]]:
        z = law.sample(num, seeded(seed))
        noise = torch.randn(z.shape, generator=seeded(seed + 1), dtype=z.dtype)
        return [(time, path.sample(z, noise, torch.full((num,), time))) for time in times]

    few = states(64, 1)
    measured = stiffness(law.denoise, few, num_iterations=60, generator=seeded(9))
    for k, (time, x) in enumerate(few):  # the same states: the same number
        exact = law.spectral_norm(x, torch.full((len(x),), time)).mean()
        assert measured.curves["stiffness"].y[k] == pytest.approx(float(exact), rel=2e-3)
    for k, (time, x) in enumerate(states(4000, 5)):  # others: within the interval
        exact = law.spectral_norm(x, torch.full((len(x),), time)).mean()
        assert agrees(measured.curves["stiffness"], k, float(exact))
