"""Rules of re-injection: their strengths, the algorithms they come from, and the one spelling that names them."""

import math
from itertools import pairwise, product

import pytest
import torch
from torch import Tensor

from fewstep.paths import Path, linear_path
from fewstep.samplers import RULES, FlowSampler, Noise, Rule, RuleLike, parse_rule
from fewstep.samplers.rules import ancestral, churn, elf
from fewstep.schedules import LogitNormalGrid, UniformGrid
from tests.samplers.bases import each_path, exact_states, noise, shares_of_noise
from tests.toys import MixingModel

C = math.sqrt(1 - 1 / 1.25**2)  # EDM's churn of 1 in 4 steps


def noise_of(rule: RuleLike, num_steps: int = 4, path: Path | None = None) -> Noise:
    """What a rule says for equal steps."""
    return parse_rule(rule)(linear_path() if path is None else path, UniformGrid().times(num_steps).double())


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0", [0.0] * 4),
        ("1e-1", [0.1] * 4),
        ("constant:0.5", [0.5] * 4),
        ("0.1, 0.2,0.3,0", [0.1, 0.2, 0.3, 0.0]),
        ("listed:0.1,0.2,0.3,0", [0.1, 0.2, 0.3, 0.0]),
        ("linear", [0.75, 0.5, 0.25, 0.0]),
        ("linear:0.2,1", [0.4, 0.6, 0.8, 1.0]),
        ("cosine", [(1 + math.sqrt(0.5)) / 2, 0.5, (1 - math.sqrt(0.5)) / 2, 0.0]),
        ("cosine:0.3,0.3", [0.3] * 4),
        ("window:0.8,0,0.5", [0.8, 0.0, 0.0, 0.0]),
        ("window:0.8,0.5,1", [0.0, 0.8, 0.8, 0.0]),
        ("ancestral:0", [0.0] * 4),
        ("churn:100", [math.sqrt(0.5)] * 4),
        ("churn", [C] * 4),
        ("churn:1, 0.5, 1", [0.0, C, 0.0, 0.0]),  # levels 2.4, 0.8, 0.27, 0
        ("by_position:0.4", [0.4] * 4),
        ("elf:0", [0.0] * 4),
        ("elf_cooling:2", [0.0] * 4),
        ("tests.samplers.test_rules.half:0.9", [0.225, 0.45, 0.675, 0.9]),
    ],
)
def test_a_name_means_its_strengths_at_equal_steps(text: str, expected: list[float]) -> None:
    found = noise_of(text)
    assert found.fresh.tolist() == pytest.approx(expected, abs=1e-12)
    assert found.by_position == text.startswith("by_position")
    if not text.startswith("elf"):
        assert (found.kept**2 + found.fresh**2).tolist() == pytest.approx([1.0] * 4, abs=1e-12)


def half(strength: float) -> Rule:
    """A rule from outside the package."""
    return lambda path, times: Noise.preserving(strength * times[1:])


def test_every_name_is_tried_above() -> None:
    tried = test_a_name_means_its_strengths_at_equal_steps.pytestmark[0].args[1]
    assert {text.split(":")[0] for text, _ in tried} >= set(RULES) - {"listed"}


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("2", "'2': re-injection strength is 2.0: expected a number between 0 (none) and 1"),
        (-0.1, "re-injection strength is -0.1"),
        ([0.5, 1.0001], "re-injection strength is 1.0001"),
        ("", "'': expected a strength from 0 to 1, NAME or NAME:NUMBER,... with one of constant, listed, linear"),
        ("liner", "'liner': expected a strength from 0 to 1, NAME"),
        ("linear:", "'linear:': expected a strength"),
        ("0.5:0.5", "reinjection is '0.5:0.5'"),
        ("no.such.rule:1", "reinjection is 'no.such.rule:1'"),
        ("linear:1,0,0", "3 numbers for linear(first=1.0, last=0.0)"),
        ("window:0.5,0.7,0.3", "window of time is 0.7 to 0.3: expected 0 <= begin < end <= 1"),
        ("ancestral:1.1", "re-injection strength is 1.1"),
        ("churn:-1", "churn is -1.0"),
        ("churn:1,2,1", "between noise levels 2.0 and 1.0"),
        ("elf:-1", "ELF's gamma is -1.0"),
    ],
)
def test_a_wrong_rule_is_named_in_one_line(value: RuleLike, message: str) -> None:
    with pytest.raises(ValueError, match=r"^[^\n]*$") as caught:
        parse_rule(value)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ([0.1, 0.2], "2 re-injection strengths for 3 steps"),
        (lambda path, times: Noise.preserving(torch.tensor([0.1])), "expected 3 numbers >= 0 each"),
        (lambda path, times: Noise.preserving(torch.tensor([0.1, 2.0, 0.0])), "expected numbers between 0 and 1"),
        (lambda path, times: Noise(torch.ones(3), torch.tensor([0.0, math.nan, 0.0])), "expected 3 numbers >= 0 each"),
        ("by_position", "pass decidedness="),
    ],
)
def test_a_rule_that_does_not_fit_the_steps_is_named_before_any_evaluation(rule: RuleLike, message: str) -> None:
    model, sampler = MixingModel(linear_path()), FlowSampler(linear_path(), reinjection=rule)
    with pytest.raises(ValueError, match=message):
        sampler.sample(model, noise(1, 2, 3), num_steps=3, generator=torch.Generator())
    assert not model.calls


@each_path
@pytest.mark.parametrize("eta", [0.3, 1.0])
def test_ancestral_strengths_are_those_of_ddim_with_its_eta(path: Path, eta: float) -> None:
    """Equation 16 of DDIM in its own letters: a the share of signal variance, x / sqrt(alpha^2 + sigma^2) the state."""
    times = LogitNormalGrid().times(5).double()
    alpha, sigma = path.schedule.alpha(times), path.schedule.sigma(times)
    a = alpha**2 / (alpha**2 + sigma**2)
    ddim = eta * ((1 - a[1:-1]) / (1 - a[:-2])).sqrt() * (1 - a[:-2] / a[1:-1]).sqrt()
    gammas = ancestral(eta)(path, times).fresh
    torch.testing.assert_close(gammas[:-1] * (1 - a[1:-1]).sqrt(), ddim, rtol=1e-12, atol=1e-12)
    assert gammas[0] == eta


@each_path
@pytest.mark.parametrize(
    ("amount", "noise_min", "noise_max"), [(1.0, 0.0, math.inf), (40.0, 0.0, math.inf), (2.0, 0.3, 1.5)]
)
def test_churn_with_euler_is_edms_algorithm_2(path: Path, amount: float, noise_min: float, noise_max: float) -> None:
    """In EDM's own coordinates x / alpha and sigma / alpha, from the first state that has a signal on."""
    num_steps, grid = 6, LogitNormalGrid()
    times, model = grid.times(num_steps).double(), MixingModel(path)
    alpha, sigma = path.schedule.alpha(times), path.schedule.sigma(times)
    x = noise(2, 3, 4, seed=1)
    ours = FlowSampler(path, grid=grid, reinjection=churn(amount, noise_min, noise_max)).sample(
        model, x, num_steps=num_steps, start_step=1, generator=torch.Generator().manual_seed(2)
    )
    churned = sigma / alpha  # the levels at which the network is evaluated, t-hat in algorithm 2
    extra = min(amount / num_steps, math.sqrt(2) - 1)
    level = torch.where(
        (churned / (1 + extra) >= noise_min) & (churned / (1 + extra) <= noise_max), churned / (1 + extra), churned
    )
    generator, previous, y = torch.Generator().manual_seed(2), None, x / alpha[1]
    for k, state in enumerate(ours.states[:-1], 1):
        torch.testing.assert_close(state, alpha[k] * y, rtol=0, atol=1e-6)
        previous = model.denoise(alpha[k] * y, times[k].expand(2), self_cond=previous)
        y = y + (level[k + 1] - churned[k]) * (y - previous) / churned[k]
        if level[k + 1] < churned[k + 1]:
            xi = torch.randn(y.shape, generator=generator).double()
            y = y + (churned[k + 1] ** 2 - level[k + 1] ** 2).sqrt() * xi
    torch.testing.assert_close(ours.x_1, y, rtol=0, atol=1e-6)


class _ElfGrid:
    """The times a_k t_k at which ELF evaluates when its own grid is uniform."""

    def __init__(self, gamma: float) -> None:
        self.gamma = gamma

    def times(self, num_steps: int) -> Tensor:
        t = UniformGrid().times(num_steps).double()
        share = (1 - self.gamma * t.diff()).clamp(0, 1)
        return torch.cat([share[:-1] * t[:-2], t[-2:]])


@pytest.mark.parametrize(
    ("num_steps", "gamma"), [*product([1, 2, 4, 9], [0.0, 1.0, 1.5, 2.0]), (2, 4.0)], ids=lambda value: f"{value:g}"
)
def test_the_elf_rule_is_elfs_own_loop(num_steps: int, gamma: float) -> None:
    path, x_0 = linear_path(), noise(2, 3, 4, seed=1)
    ours = FlowSampler(path, grid=_ElfGrid(gamma), reinjection=elf(gamma)).sample(
        MixingModel(path), x_0, num_steps=num_steps, generator=torch.Generator().manual_seed(2)
    )
    model, x, previous, generator = MixingModel(path), x_0, None, torch.Generator().manual_seed(2)
    times = [k / num_steps for k in range(num_steps + 1)]
    for k, (t, t_next) in enumerate(pairwise(times)):
        if k < num_steps - 1 and gamma > 0:
            share = max(0.0, 1 - gamma * (t_next - t))
            x = share * x + (1 - share) * torch.randn(x.shape, generator=generator).double()
            t = share * t
        torch.testing.assert_close(ours.states[k], x, rtol=0, atol=1e-6)
        previous = model.denoise(x, torch.full((2,), t, dtype=torch.float64), self_cond=previous)
        x = x + (t_next - t) * (previous - x) / (1 - t)
    torch.testing.assert_close(ours.x_1, x, rtol=0, atol=1e-6)


@each_path
@pytest.mark.parametrize("num_steps", [1, 2, 4, 8])
def test_the_cooled_control_is_as_cold_as_elf_in_every_state_and_draws_nothing(path: Path, num_steps: int) -> None:
    control, cold = (shares_of_noise(path, rule, num_steps) for rule in ("elf_cooling", "elf"))
    torch.testing.assert_close(control, cold, rtol=1e-9, atol=0)
    for _, _, weights in exact_states(FlowSampler(path, reinjection="elf_cooling"), num_steps):
        assert not weights[:, 1:].any()
