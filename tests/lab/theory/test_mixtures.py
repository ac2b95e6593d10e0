"""The flow of a mixture in closed form: against autograd, brute force, samples, and its own bounds."""

import math

import pytest
import torch
from torch import Tensor

from fewstep.lab.theory.geometry import lattice, simplex, sphere, tree
from fewstep.lab.theory.mixtures import Mixture
from fewstep.paths import Path, linear_path
from fewstep.samplers import FlowSampler
from fewstep.schedules import UniformGrid
from tests.diagnostics.decoders import seeded
from tests.samplers.bases import each_path


def mixture(path: Path, width: float, cap: float | None = None, num_modes: int = 7, dimension: int = 4) -> Mixture:
    return Mixture(path, sphere(num_modes, dimension, seeded(2)), width, cap=cap)


def states(law: Mixture, times: Tensor, seed: int = 1) -> Tensor:
    """One state on the path at each of ``times``."""
    data = law.sample(len(times), seeded(seed))
    return law.path.sample(data, torch.randn(data.shape, generator=seeded(seed + 1), dtype=data.dtype), times)


def jacobians(law: Mixture, x: Tensor, t: Tensor) -> Tensor:
    """(B, n, n) of the clean estimate, by autograd."""
    rows = [
        torch.autograd.functional.jacobian(lambda y, t=time: law.denoise(y[None], t[None])[0], state)
        for state, time in zip(x, t, strict=True)
    ]
    return torch.stack(rows)


TIMES = torch.tensor([0.02, 0.3, 0.55, 0.8, 0.95], dtype=torch.float64)


@each_path
@pytest.mark.parametrize("width", [0.0, 0.4])
@pytest.mark.parametrize("cap", [None, 1.5])
def test_the_norm_of_the_jacobian_is_that_of_autograd(path: Path, width: float, cap: float | None) -> None:
    law = mixture(path, width, cap)
    x = states(law, TIMES)
    norms = torch.linalg.matrix_norm(jacobians(law, x, TIMES), 2)
    torch.testing.assert_close(law.spectral_norm(x, TIMES), norms, rtol=1e-8, atol=1e-8)


@each_path
@pytest.mark.parametrize("dimension", [1, 2])
def test_posterior_mean_equals_brute_force_integration(path: Path, dimension: int) -> None:
    means = torch.randn(3, dimension, generator=seeded(5), dtype=torch.float64)
    law = Mixture(path, means, 0.35)
    ticks = torch.linspace(-7, 7, 561, dtype=torch.float64)
    grid = torch.stack(torch.meshgrid(*[ticks] * dimension, indexing="ij"), -1).reshape(-1, dimension)
    squared = (grid[:, None] - means).square().sum(-1) / law.width**2
    prior = (-squared / 2).exp().mean(1) / (2 * math.pi * law.width**2) ** (dimension / 2)
    cell = float(ticks[1] - ticks[0]) ** dimension
    t = torch.tensor([0.3, 0.7], dtype=torch.float64)
    x = states(law, t)
    alpha, sigma = path.alpha_sigma(t, x)
    for row in range(2):
        off = (x[row] - alpha[row] * grid).square().sum(1)
        joint = prior * (-off / (2 * sigma[row] ** 2)).exp() / (2 * math.pi * sigma[row] ** 2) ** (dimension / 2)
        evidence = joint.sum() * cell
        torch.testing.assert_close(law.denoise(x, t)[row], joint @ grid * cell / evidence, rtol=1e-8, atol=1e-8)


def energy_test_p_value(first: Tensor, second: Tensor, permutations: int, generator: torch.Generator) -> float:
    """Of the permutation test with the energy distance (Szekely and Rizzo 2004)."""
    pooled = torch.cat([first, second])
    distances = torch.cdist(pooled, pooled)

    def statistic(order: Tensor) -> float:
        a, b = order[: len(first)], order[len(first) :]
        within = distances[a][:, a].mean() + distances[b][:, b].mean()
        return float(2 * distances[a][:, b].mean() - within)

    observed = statistic(torch.arange(len(pooled)))
    shuffled = [statistic(torch.randperm(len(pooled), generator=generator)) for _ in range(permutations)]
    return (1 + sum(one >= observed for one in shuffled)) / (1 + permutations)


def p_value(path: Path, reinjection: float | str, steps: int) -> float:
    """Of samples after ``steps`` steps being exact."""
    law = mixture(path, 0.15, num_modes=4, dimension=2)
    noise = seeded(12)
    x_0 = torch.randn(400, 1, 2, generator=noise, dtype=torch.float64)
    samples = FlowSampler(path, reinjection=reinjection).sample(law, x_0, num_steps=steps, generator=noise).x_1[:, 0]
    return energy_test_p_value(samples, law.sample(400, seeded(11)), 199, seeded(13))


@each_path
@pytest.mark.parametrize("reinjection", [0.0, "ancestral"], ids=["deterministic", "ancestral"])
def test_many_steps_give_exact_samples_by_a_two_sample_test_of_level_one_per_cent_and_two_steps_do_not(
    path: Path, reinjection: float | str
) -> None:
    assert p_value(path, reinjection, 200) > 0.01
    assert p_value(path, reinjection, 2) <= 0.01


def test_full_reinjection_does_not_reach_the_law_with_many_steps() -> None:
    assert p_value(linear_path(), 1.0, 200) <= 0.01


def product_of_step_bounds(law: Mixture, times: Tensor) -> float:
    """Of x_s = (sigma_s / sigma_t) x_t + (alpha_s - alpha_t sigma_s / sigma_t) clean, |d clean / dx| <= g + b R^2."""
    alpha, sigma = law.path.schedule.alpha(times), law.path.schedule.sigma(times)
    variance = alpha**2 * law.width**2 + sigma**2
    own = alpha * law.width**2 / variance
    clean = (own + alpha * sigma**2 / variance**2 * law.radius**2)[:-1]
    clean = clean if law.cap is None else torch.minimum(clean, own[:-1].clamp(min=law.cap))
    ratio = sigma[1:] / sigma[:-1]
    return float((ratio + (alpha[1:] - alpha[:-1] * ratio) * clean).prod())


@each_path
@pytest.mark.parametrize("width", [0.0, 0.3])
@pytest.mark.parametrize("cap", [None, 2.0])
@pytest.mark.parametrize("steps", [1, 3, 6])
def test_lipschitz_constant_of_the_k_step_map_is_at_most_the_product_of_the_steps_bounds(
    path: Path, width: float, cap: float | None, steps: int
) -> None:
    law = Mixture(path, torch.tensor([[-1.0, 0.0], [1.0, 0.0]], dtype=torch.float64), width, cap=cap)
    times = UniformGrid().times(steps).double()
    bound = product_of_step_bounds(law, times)

    def final(x: Tensor) -> Tensor:
        generator = torch.Generator()
        *_, last = FlowSampler(path).iterate(law, x[None, None], num_steps=steps, generator=generator)
        return last.x_t[0, 0]

    points = torch.randn(40, 2, generator=seeded(4), dtype=torch.float64)
    points[0] = 0.0  # between the modes, where it is steepest
    norms = [torch.linalg.matrix_norm(torch.autograd.functional.jacobian(final, x), 2) for x in points]
    assert max(map(float, norms)) <= bound * (1 + 1e-9)
    if steps == 6 and width == 0.0:  # two modes: the bound is sharp at the point between them
        assert float(norms[0]) >= 0.99 * bound


def test_a_cap_bounds_the_jacobian_everywhere_and_one_that_does_not_bind_changes_nothing() -> None:
    path = linear_path()
    x = torch.randn(200, 4, generator=seeded(), dtype=torch.float64)
    t = torch.rand(200, generator=seeded(1), dtype=torch.float64) * 0.98 + 0.01
    tight, loose, exact = (mixture(path, 0.0, cap) for cap in (1.5, 1e12, None))
    assert float(tight.spectral_norm(x, t).max()) <= 1.5 * (1 + 1e-9)
    assert float(exact.spectral_norm(x, t).max()) > 1.5
    torch.testing.assert_close(loose.denoise(x, t), exact.denoise(x, t))


def test_weights_that_would_overflow_do_not_and_the_end_of_time_gives_the_nearest_latent() -> None:
    latents, x = (1e3 * torch.randn(count, 3, 2, generator=seeded(count), dtype=torch.float64) for count in (37, 5))
    law = Mixture(linear_path(), latents)
    distance, index = law.nearest(x)
    torch.testing.assert_close(law.denoise(x, torch.ones(5)), latents[index])
    apart = torch.cdist(x.flatten(1), latents.flatten(1))
    torch.testing.assert_close(distance, apart.min(1).values)
    assert index.equal(apart.argmin(1))
    with pytest.raises(ValueError, match="padding"):
        law.denoise(x, torch.ones(5), mask=torch.zeros(5, 3, dtype=torch.bool))


def test_the_norm_in_many_numbers_is_that_of_the_matrix() -> None:
    for num_modes, dimension in ((20, 80), (200, 80), (400, 280)):  # fewer and more modes than numbers; Lanczos
        law = Mixture(linear_path(), sphere(num_modes, dimension, seeded()), 0.1)
        t = torch.tensor([0.3, 0.6, 0.8], dtype=torch.float64)
        x = states(law, t)
        exact = torch.linalg.matrix_norm(jacobians(law, x, t), 2)
        torch.testing.assert_close(law.spectral_norm(x, t), exact, rtol=1e-4, atol=1e-6)


def test_modes_lie_where_they_should() -> None:
    corners = simplex(6)
    gram = corners @ corners.T
    torch.testing.assert_close(gram, torch.eye(6, dtype=torch.float64) * 1.2 - 0.2)
    assert lattice(3, 2).shape == (9, 2)
    assert float(lattice(3, 2).mean(0).abs().max()) < 1e-12
    leaves = tree(2, 3, 5, 0.1, seeded())
    families = leaves.reshape(3, 3, 5)
    assert float((families - families.mean(1, keepdim=True)).norm(dim=-1).max()) <= 0.2
    assert float(torch.pdist(families.mean(1)).min()) > 0.2


@pytest.mark.parametrize("settings", [{"width": -1.0}, {"cap": 0.0}, {"means": torch.zeros(0, 2)}])
def test_what_makes_no_mixture_is_refused(settings: dict) -> None:
    with pytest.raises(ValueError, match="expected"):
        Mixture(linear_path(), **{"means": simplex(4), **settings})
