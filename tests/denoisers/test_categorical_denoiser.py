"""The categorical denoiser against brute-force Bayes, and what holds whatever its weights."""

from itertools import product

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal

from fewstep.denoisers import CategoricalDenoiser
from fewstep.paths import PATHS
from tests.nn.builders import normal, randomised, seeded

V, D, K = 4, 3, 2
PRIOR = torch.tensor([0.5, 0.3, 0.15, 0.05], dtype=torch.float64)
each_path = pytest.mark.parametrize("path", PATHS)


CODE = normal((V, D), torch.Generator().manual_seed(5))


def build(path: str) -> CategoricalDenoiser:
    denoiser = CategoricalDenoiser(D, 8, V, path, width=8, depth=2, num_heads=2).double()
    denoiser.set_codebook(CODE, PRIOR.log())
    return denoiser


def brute_force(x_t: Tensor, t: Tensor, path: str) -> Tensor:
    """E[x_1 | x_t] (B, K, D) by weighing each of the V^K sequences."""
    sequences = torch.tensor(list(product(range(V), repeat=K)))
    alpha, sigma = PATHS[path]().alpha_sigma(t, x_t[:, None])
    points = CODE[sequences]
    log_weight = Normal(alpha * points, sigma).log_prob(x_t[:, None]).sum((-1, -2)) + PRIOR[sequences].log().sum(-1)
    return torch.einsum("bm,mkd->bkd", log_weight.softmax(-1), points)


@each_path
def test_with_its_zero_start_the_estimate_is_the_exact_posterior_mean(path: str, generator: torch.Generator) -> None:
    t = torch.tensor([0.0, 0.05, 0.3, 0.5, 0.8, 0.95], dtype=torch.float64).repeat(8)
    token = torch.multinomial(PRIOR, len(t) * K, True, generator=generator).reshape(-1, K)
    x_t = PATHS[path]().sample(CODE[token], normal((len(t), K, D), generator), t)
    output = seeded(lambda: build(path))(x_t, t)
    torch.testing.assert_close(output.value, brute_force(x_t, t, path), rtol=1e-9, atol=1e-9)


@each_path
def test_under_autocast_the_posterior_keeps_float32_accuracy(path: str) -> None:
    denoiser = seeded(lambda: build(path)).float()
    pairs = torch.tensor([(a, b) for a in range(V) for b in range(V) if a != b])
    t = torch.full((len(pairs),), 0.97)
    # Half-way between two tokens, where a small error of the log-likelihood turns the posterior over.
    x_t = (
        PATHS[path]().schedule.alpha(t.double())[:, None, None] * CODE[pairs].mean(1, keepdim=True).expand(-1, K, -1)
    ).float()
    with torch.autocast("cpu", torch.bfloat16):
        value = denoiser(x_t, t).value
    assert value.dtype == torch.float32
    exact = brute_force(x_t.double(), t.double(), path)
    torch.testing.assert_close(value.double(), exact, rtol=0, atol=1e-3)


@each_path
@pytest.mark.parametrize("time", [0.0, 0.4, 0.99, 1.0])
def test_the_estimate_stays_in_the_hull_of_the_code(path: str, time: float, generator: torch.Generator) -> None:
    denoiser = randomised(lambda: build(path), std=1.0)
    denoiser.set_codebook(CODE, PRIOR.log())
    x_t = 10 * normal((50, K, D), generator)
    value = denoiser(x_t, torch.full((50,), time)).value
    directions = normal((500, D), generator)
    reach = (directions @ CODE.T).amax(-1)
    assert bool(value.isfinite().all())
    assert ((value @ directions.T) <= reach + 1e-9).all()
