"""The categorical denoiser against brute-force Bayes, and what holds whatever its weights."""

from itertools import product

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal

from fewstep.denoisers import CategoricalDenoiser
from fewstep.paths import PATHS
from tests.nn.builders import first, normal, randomised, seeded

V, D, K = 4, 3, 2
PRIOR = torch.tensor([0.5, 0.3, 0.15, 0.05], dtype=torch.float64)
each_path = pytest.mark.parametrize("path", PATHS)


def code(dim: int = D) -> Tensor:
    return normal((V, dim), torch.Generator().manual_seed(5))


def build(path: str, dim: int = D, *, self_conditioning: bool = False) -> CategoricalDenoiser:
    denoiser = CategoricalDenoiser(
        dim, 8, V, path, width=8, depth=2, num_heads=2, self_conditioning=self_conditioning
    ).double()
    denoiser.set_codebook(code(dim), PRIOR.log())
    return denoiser


def brute_force(x_t: Tensor, t: Tensor, path: str) -> Tensor:
    """E[x_1 | x_t] (B, K, D) by weighing each of the V^K sequences."""
    sequences = torch.tensor(list(product(range(V), repeat=K)))
    alpha, sigma = PATHS[path]().alpha_sigma(t, x_t[:, None])
    points = code()[sequences]
    log_weight = Normal(alpha * points, sigma).log_prob(x_t[:, None]).sum((-1, -2)) + PRIOR[sequences].log().sum(-1)
    return torch.einsum("bm,mkd->bkd", log_weight.softmax(-1), points)


@each_path
def test_with_its_zero_start_the_estimate_is_the_exact_posterior_mean(path: str, generator: torch.Generator) -> None:
    t = torch.tensor([0.0, 0.05, 0.3, 0.5, 0.8, 0.95], dtype=torch.float64).repeat(8)
    token = torch.multinomial(PRIOR, len(t) * K, True, generator=generator).reshape(-1, K)
    x_t = PATHS[path]().sample(code()[token], normal((len(t), K, D), generator), t)
    output = seeded(lambda: build(path))(x_t, t)
    torch.testing.assert_close(output.value, brute_force(x_t, t, path), rtol=1e-9, atol=1e-9)


@each_path
def test_under_autocast_the_posterior_keeps_float32_accuracy(path: str) -> None:
    denoiser = seeded(lambda: build(path)).float()
    pairs = torch.tensor([(a, b) for a in range(V) for b in range(V) if a != b])
    t = torch.full((len(pairs),), 0.97)
    # Half-way between two tokens, where a small error of the log-likelihood turns the posterior over.
    x_t = (
        PATHS[path]().schedule.alpha(t.double())[:, None, None] * code()[pairs].mean(1, keepdim=True).expand(-1, K, -1)
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
    denoiser.set_codebook(code(), PRIOR.log())
    x_t = 10 * normal((50, K, D), generator)
    value = denoiser(x_t, torch.full((50,), time)).value
    directions = normal((500, D), generator)
    reach = (directions @ code().T).amax(-1)
    assert bool(value.isfinite().all())
    assert ((value @ directions.T) <= reach + 1e-9).all()


@each_path
def test_padding_changes_nothing_at_real_positions(path: str, generator: torch.Generator) -> None:
    denoiser = randomised(lambda: build(path, self_conditioning=True))
    x_t, t, previous = normal((2, 5, D), generator), torch.tensor([0.3, 0.6]), normal((2, 5, D), generator)
    output = denoiser(x_t, t, mask=first([3, 5], 5), self_cond=previous)
    real = first([3, 5], 8)
    junk = 30 * normal((2, 2, 8, D), generator)
    more, more_previous = junk[0].clone(), junk[1].clone()
    more[real], more_previous[real] = x_t[real[:, :5]], previous[real[:, :5]]
    padded = denoiser(more, t, mask=real, self_cond=more_previous)
    assert padded.token_logits is not None and output.token_logits is not None
    torch.testing.assert_close(padded.token_logits[real], output.token_logits[real[:, :5]], rtol=0, atol=1e-9)
    assert (denoiser(more, t, self_cond=more_previous).value[real] - padded.value[real]).abs().max() > 1e-3


def test_neighbours_speak_once_trained_and_a_missing_estimate_reads_as_zero(generator: torch.Generator) -> None:
    denoiser = randomised(lambda: build("linear", self_conditioning=True))
    x_t, t = normal((1, 4, D), generator), torch.tensor([0.4])
    moved = x_t.clone()
    moved[:, 3] += 1
    assert (denoiser(moved, t).value - denoiser(x_t, t).value)[:, 0].abs().max() > 1e-4
    assert torch.equal(denoiser(x_t, t).value, denoiser(x_t, t, self_cond=0 * x_t).value)
    assert (denoiser(x_t, t, self_cond=x_t).value - denoiser(x_t, t).value).abs().max() > 1e-4
