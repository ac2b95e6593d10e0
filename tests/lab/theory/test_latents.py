"""The exact denoiser over latents: equal to the naive one, its Jacobian, its cap, and its use as a flow."""

import math

import pytest
import torch
from torch import Tensor

from fewstep.diagnostics.stiffness import stiffness
from fewstep.lab.theory.covariance import largest_eigenvalue
from fewstep.lab.theory.latents import LatentPosterior
from fewstep.paths import Path, linear_path, variance_preserving_path
from fewstep.samplers import FlowSampler

N, K, D, B = 37, 3, 2, 5
PATHS = [linear_path(), variance_preserving_path()]


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def naive(latents: Tensor, h: float, path: Path, x_t: Tensor, t: Tensor, beta: Tensor | float = 1.0) -> Tensor:
    """Bayes' rule written out, nothing shared with the class: distances, and each component's own mean."""
    alpha, sigma = (value[:, None] for value in path.alpha_sigma(t, x_t))
    variance = alpha**2 * h**2 + sigma**2
    apart = x_t[:, None] - alpha * latents
    energy = apart.square().sum((2, 3)) / (2 * variance[:, :, 0, 0])
    weights = torch.softmax(-torch.as_tensor(beta).reshape(-1, 1) * energy, 1)
    return (weights[:, :, None, None] * (latents + alpha * h**2 / variance * apart)).sum(1)


def jacobians(latents: Tensor, h: float, path: Path, x_t: Tensor, t: Tensor, beta: Tensor) -> Tensor:
    """(B, n, n) by autograd of the naive one, beta held."""
    rows = [
        torch.autograd.functional.jacobian(
            lambda one, i=i: naive(latents, h, path, one[None], t[i : i + 1], beta[i])[0], x_t[i]
        )
        for i in range(len(x_t))
    ]
    return torch.stack(rows).reshape(len(x_t), K * D, K * D)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("h", [0.0, 0.7])
@pytest.mark.parametrize("chunk_size", [1, 8, 37, 100])
def test_two_passes_in_chunks_equal_bayes_rule_written_out(path: Path, h: float, chunk_size: int) -> None:
    latents, x_t, t = draw(N, K, D), draw(B, K, D, seed=1), torch.tensor([0.0, 0.3, 0.6, 0.9, 0.99])
    posterior = LatentPosterior(latents, h, path, chunk_size=chunk_size)
    torch.testing.assert_close(posterior.denoise(x_t, t), naive(latents, h, path, x_t, t), rtol=1e-9, atol=1e-10)


def test_weights_that_would_overflow_do_not_and_the_end_of_time_gives_the_nearest_latent() -> None:
    latents, x = 1e3 * draw(N, K, D), 1e3 * draw(B, K, D, seed=1)
    posterior = LatentPosterior(latents, 0.0, linear_path(), chunk_size=8)
    estimate = posterior.denoise(x, torch.ones(B))
    distance, index = posterior.nearest(x)
    torch.testing.assert_close(estimate, latents[index])
    apart = torch.cdist(x.flatten(1), latents.flatten(1))
    torch.testing.assert_close(distance, apart.min(1).values)
    assert index.equal(apart.argmin(1))


@pytest.mark.parametrize(("h", "cap"), [(0.0, 0.3), (0.0, 1.0), (0.0, 4.0), (0.7, 0.3), (0.7, 1.0)])
def test_at_constant_beta_the_jacobian_keeps_the_cap_and_beta_is_1_or_at_an_end(h: float, cap: float) -> None:
    latents, t = draw(N, K, D), torch.linspace(0.05, 0.95, 40)
    x_t = linear_path().sample(latents[:40].repeat(2, 1, 1)[:40], draw(40, K, D, seed=1), t)
    posterior = LatentPosterior(latents, h, linear_path(), cap, chunk_size=8)
    beta = posterior.inverse_temperature(x_t, t)
    torch.testing.assert_close(posterior.denoise(x_t, t), naive(latents, h, linear_path(), x_t, t, beta))
    norms = torch.linalg.matrix_norm(jacobians(latents, h, linear_path(), x_t, t, beta), 2)
    alpha, sigma = linear_path().alpha_sigma(t, t.double())
    smoothing = alpha * h**2 / (alpha**2 * h**2 + sigma**2)
    assert bool((norms <= smoothing.clamp(min=cap) + 1e-6).all())
    unlimited = torch.linalg.matrix_norm(jacobians(latents, h, linear_path(), x_t, t, torch.ones(40)), 2)
    assert bool((beta[unlimited <= cap] == 1).all())
    hard = (unlimited > cap) & (smoothing < cap)
    assert bool(hard.any())
    above = torch.linalg.matrix_norm(jacobians(latents, h, linear_path(), x_t, t, beta * 1.004), 2)
    assert bool((above > cap)[hard].all())


def test_the_bound_on_beta_times_covariance_is_not_monotone_so_the_end_found_need_not_be_the_only_one() -> None:
    # Two points at -1 and 1: beta k sech^2(beta k x) rises and falls in beta. Exact at x = 0.3, tempered at x = 0.01.
    points = torch.tensor([-1.0, 1.0]).double().reshape(2, 1, 1)
    t, cap = torch.full((2,), 0.9), 1.0
    posterior = LatentPosterior(points, 0.0, linear_path(), cap)
    x_t = torch.tensor([0.01, 0.3]).double().reshape(2, 1, 1)
    beta = posterior.inverse_temperature(x_t, t)
    assert beta[1] == 1
    assert beta[0] < 0.1
    k = 0.9 / (1 - t.double()[0]) ** 2
    between = 0.03 * k / torch.cosh(0.03 * k * 0.3) ** 2
    assert between > cap  # beta = 0.03 at x = 0.3 breaks the cap that beta = 1 keeps


@pytest.mark.parametrize("h", [0.0, 0.4])
@pytest.mark.parametrize("cap", [0.5, 2.0])
def test_under_the_rule_everywhere_the_denoiser_is_lipschitz_and_under_the_rule_point_it_may_jump(
    h: float, cap: float
) -> None:
    points = torch.tensor([-1.0, 1.0]).double().reshape(2, 1, 1)
    x = torch.linspace(-2, 2, 4001, dtype=torch.float64).reshape(-1, 1, 1)
    steepest = {}
    for rule in ("everywhere", "point"):
        posterior = LatentPosterior(points, h, linear_path(), cap, rule=rule)
        for time in (0.5, 0.8, 0.9):
            values = posterior.denoise(x, torch.full((len(x),), time)).flatten()
            steepest[rule, time] = float((values.diff() / x.flatten().diff()).max())
    for time in (0.5, 0.8, 0.9):
        smoothing = time * h**2 / (time**2 * h**2 + (1 - time) ** 2)
        assert steepest["everywhere", time] <= max(cap, smoothing) + 1e-6
    if h == 0:
        assert steepest["point", 0.9] > 50 * cap


def test_with_the_rule_everywhere_the_map_of_k_steps_keeps_the_product_of_the_steps_constants() -> None:
    latents, cap, steps, path = draw(N, K, D), 1.5, 4, linear_path()
    posterior = LatentPosterior(latents, 0.0, path, cap, rule="everywhere", chunk_size=8)
    x = draw(200, K, D, seed=2)
    y = x + 1e-3 * draw(200, K, D, seed=3)
    none = torch.Generator()
    ends = [FlowSampler(path).sample(posterior, one, num_steps=steps, generator=none).x_1 for one in (x, y)]
    bound = math.prod(
        (1 - s) / (1 - t) + abs(s - t * (1 - s) / (1 - t)) * cap
        for t, s in ((k / steps, (k + 1) / steps) for k in range(steps))
    )
    growth = (ends[0] - ends[1]).flatten(1).norm(dim=1) / (x - y).flatten(1).norm(dim=1)
    assert float(growth.max()) <= bound


def test_the_largest_eigenvalue_comes_from_below_and_is_exact_in_a_small_space() -> None:
    root = draw(4, 30, 30)
    matrix = root @ root.transpose(1, 2)
    exact = torch.linalg.eigvalsh(matrix)[:, -1]
    found = [
        largest_eigenvalue(lambda v: torch.einsum("bij,bj->bi", matrix, v), draw(4, 30, seed=1), steps)[0]
        for steps in (1, 3, 12, 30, 40)
    ]
    assert all(bool((value <= exact * (1 + 1e-12)).all()) for value in found)
    torch.testing.assert_close(found[2], exact, rtol=1e-2, atol=0)
    torch.testing.assert_close(found[3], exact, rtol=1e-10, atol=0)
    torch.testing.assert_close(found[4], exact, rtol=1e-10, atol=0)


@pytest.mark.parametrize("cap", [None, 1.0])
def test_diagnostics_measure_the_stiffness_that_the_closed_form_gives(cap: float | None) -> None:
    latents, x_t, time = draw(N, K, D), draw(B, K, D, seed=1), 0.5
    posterior = LatentPosterior(latents, 0.7, linear_path(), cap, chunk_size=8)
    measured = stiffness(posterior.velocity, [(time, x_t)], num_iterations=200, generator=torch.Generator())
    beta = posterior.inverse_temperature(x_t, torch.full((B,), time))
    of_estimate = jacobians(latents, 0.7, linear_path(), x_t, torch.full((B,), time), beta)
    of_velocity = (of_estimate - torch.eye(K * D)) / (1 - time)  # v = (x1_hat - x_t) / (1 - t)
    exact = float(torch.linalg.matrix_norm(of_velocity, 2).mean())
    assert measured.curves["stiffness"].y[0] == pytest.approx(exact, rel=1e-2)


def test_enough_steps_give_draws_of_the_smoothed_latents() -> None:
    # Two latents in the plane with h: the share of each and the spread about it, within 4 standard errors.
    latents = torch.tensor([[-2.0, 0.0], [2.0, 1.0], [2.0, 1.0]]).double().reshape(3, 1, 2)
    posterior = LatentPosterior(latents, 0.5, linear_path())
    x_1 = FlowSampler(linear_path()).sample(posterior, draw(4000, 1, 2), num_steps=200, generator=torch.Generator()).x_1
    distance, index = posterior.nearest(x_1)
    assert abs(float((index > 0).double().mean()) - 2 / 3) < 4 * math.sqrt(2 / 9 / 4000)
    assert float(distance.square().mean()) == pytest.approx(2 * 0.5**2, abs=4 * 0.5 / math.sqrt(4000) + 0.01)


@pytest.mark.parametrize(
    ("latents", "h", "cap", "rule", "chunk_size"),
    [
        (torch.zeros(3, 2), 0.0, None, "point", 1),
        (torch.full((3, 2, 1), torch.nan), 0.0, None, "point", 1),
        (torch.zeros(0, 2, 1), 0.0, None, "point", 1),
        (torch.zeros(3, 2, 1), -1.0, None, "point", 1),
        (torch.zeros(3, 2, 1), 0.0, 0.0, "point", 1),
        (torch.zeros(3, 2, 1), 0.0, 1.0, "somewhere", 1),
        (torch.zeros(3, 2, 1), 0.0, 1.0, "point", 0),
    ],
)
def test_bad_input_is_refused(latents: Tensor, h: float, cap: float | None, rule: str, chunk_size: int) -> None:
    with pytest.raises(ValueError, match="expected"):
        LatentPosterior(latents, h, linear_path(), cap, rule=rule, chunk_size=chunk_size)


def test_a_mask_with_padding_is_refused_and_equal_latents_are_no_trouble() -> None:
    posterior = LatentPosterior(torch.ones(3, 2, 1), 0.0, linear_path(), 1.0)
    x_t, t = torch.zeros(1, 2, 1), torch.full((1,), 0.5)
    assert bool((posterior.denoise(x_t, t) == 1).all())
    with pytest.raises(ValueError, match="padding"):
        posterior.denoise(x_t, t, mask=torch.tensor([[True, False]]))
