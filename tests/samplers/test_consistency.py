"""The law of the samples with many steps of an exact posterior mean, for every rule: which are consistent.

Closed forms against the exact recursion of the variance, and that against the sampler itself.
"""

import pytest
import torch
from torch import Tensor

from fewstep.lab.theory.consistency import WIDTH, limits, sample_spread
from fewstep.paths import Path, linear_path
from fewstep.samplers import FlowSampler, is_consistent
from fewstep.types import FlowLike
from tests.samplers.bases import basis_noise, each_path, unit

MANY = 2**16
SPELLINGS = tuple(limits(linear_path()))


class GaussianModel(FlowLike):
    """The exact denoiser of N(0, WIDTH^2), or the exact end of its flow's ODE."""

    def __init__(self, path: Path, endpoint: bool) -> None:
        self.path, self.endpoint = path, endpoint

    def denoise(self, x_t: Tensor, t: Tensor, *, mask: Tensor | None = None, self_cond: Tensor | None = None) -> Tensor:
        alpha, sigma = self.path.alpha_sigma(t, x_t)
        variance = alpha**2 * WIDTH**2 + sigma**2
        return x_t * (WIDTH / variance.sqrt() if self.endpoint else alpha * WIDTH**2 / variance)


@each_path
@pytest.mark.parametrize("rule", SPELLINGS)
def test_the_spread_of_the_samples_tends_to_its_closed_form_which_is_1_if_the_rule_is_consistent(
    path: Path, rule: str
) -> None:
    limit = limits(path)[rule]
    assert sample_spread(rule, path, MANY) == pytest.approx(limit, abs=0.008)
    assert is_consistent(rule) == (limit == 1)
    assert is_consistent([0.0, 0.5]) is None, "no limit is known"


@each_path
@pytest.mark.parametrize("endpoint", [False, True])
@pytest.mark.parametrize("rule", [*SPELLINGS, "0.3,0.9,0.1,0.6,1"])
@pytest.mark.parametrize("noise_scale", [1.0, 0.5])
def test_the_recursion_is_what_the_sampler_does_and_the_spread_goes_with_the_noise_scale(
    path: Path, rule: str, endpoint: bool, noise_scale: float
) -> None:
    undecided = torch.zeros(1, 1)
    sampler = FlowSampler(path, reinjection=rule, noise_scale=noise_scale, decidedness=lambda x1_hat, mask: undecided)
    with basis_noise():
        x_1 = sampler.sample(
            GaussianModel(path, endpoint), unit(1).view(1, 1, -1), num_steps=5, generator=torch.Generator()
        ).x_1
    spread = noise_scale * sample_spread(rule, path, 5, endpoint=endpoint)
    assert float(x_1.norm()) / WIDTH == pytest.approx(spread, rel=1e-6)


@each_path
@pytest.mark.parametrize("num_steps", [1, 2, 7, 64])
def test_an_endpoint_model_is_exact_with_all_noise_fresh_and_with_less_only_in_one_step(
    path: Path, num_steps: int
) -> None:
    assert sample_spread(1, path, num_steps, endpoint=True) == pytest.approx(1, abs=1e-12)
    deviates = {gamma: abs(sample_spread(gamma, path, num_steps, endpoint=True) - 1) > 1e-3 for gamma in (0, 0.5)}
    assert all(deviates.values()) == (num_steps > 1)
