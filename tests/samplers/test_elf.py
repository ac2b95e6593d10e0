"""ELF's stochastic rule: it is ELF's own loop, by how much it misses the path's law, and the control for it."""

import math
from itertools import pairwise, product

import pytest
import torch
from torch import Tensor

from fewstep.paths import Path, linear_path, variance_preserving_path
from fewstep.samplers import (
    CommitmentReinjection,
    ElfReinjection,
    EulerSolver,
    FlowSampler,
    HeunSolver,
    MatchedCooling,
)
from fewstep.schedules import UniformGrid
from tests.samplers.bases import BasisNoise, exact_states, shares_of_noise
from tests.toys import MixingModel

PATHS = [linear_path(), variance_preserving_path()]
each_path = pytest.mark.parametrize("path", PATHS, ids=["linear", "variance_preserving"])
each_solver = pytest.mark.parametrize("solver", [EulerSolver(), HeunSolver()], ids=["euler", "heun"])


@pytest.mark.parametrize(
    ("num_steps", "gamma", "first", "smallest", "last"),
    [
        (1, 1.5, 1.0, 1.0, 1.0),
        (2, 1.5, 0.791, 0.791, 0.791),
        (4, 1.5, 0.716, 0.536, 0.536),
        (4, 2.0, 0.872, 0.581, 0.581),
        (8, 1.5, 0.793, 0.462, 0.462),
        (32, 1.5, 0.952, 0.291, 0.426),
    ],
)
def test_elf_leaves_too_little_noise(num_steps: int, gamma: float, first: float, smallest: float, last: float) -> None:
    shares = shares_of_noise(linear_path(), ElfReinjection(gamma), num_steps)
    measured = torch.stack([shares[0], shares.min(), shares[-1]])
    torch.testing.assert_close(measured, torch.tensor([first, smallest, last]).double(), rtol=0, atol=6e-4)


def test_one_elf_step_from_the_right_law_keeps_between_half_and_all_of_the_variance() -> None:
    """The figure for a single step: 0.51 to 0.53 of the variance in 4 steps at gamma = 1.5."""
    plan = ElfReinjection(1.5).plan(linear_path(), UniformGrid().times(4).double())
    shares = [weights.kept**2 + weights.fresh**2 for weights in (plan.initial, *plan.steps)]
    assert shares[:3] == pytest.approx([0.512, 0.502, 0.525], abs=6e-4)
    assert shares[3:] == [1.0, 1.0]
    assert all(weights.kept + weights.fresh == pytest.approx(1, abs=1e-12) for weights in (plan.initial, *plan.steps))


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
    path, x_0 = linear_path(), torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    ours = FlowSampler(path, EulerSolver(), _ElfGrid(gamma), ElfReinjection(gamma)).sample(
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


class _SameRatioGrid:
    """The variance-preserving path's times at which signal and noise stand as on the linear path at equal steps."""

    def times(self, num_steps: int) -> Tensor:
        u = UniformGrid().times(num_steps).double()
        return 2 / math.pi * torch.atan2(u, 1 - u)


def test_elf_leaves_the_same_share_on_both_paths_where_signal_and_noise_stand_alike() -> None:
    linear, vp = (
        FlowSampler(path, grid=grid, reinjection=ElfReinjection(1.5), noise=BasisNoise())
        for path, grid in zip(PATHS, (UniformGrid(), _SameRatioGrid()), strict=True)
    )
    for (t, data, noise), (t_vp, data_vp, noise_vp) in zip(exact_states(linear, 4), exact_states(vp, 4), strict=True):
        torch.testing.assert_close(data_vp, variance_preserving_path().schedule.alpha(torch.tensor([t_vp]).double()))
        torch.testing.assert_close(data * noise_vp.norm(), data_vp * noise.norm(), rtol=1e-9, atol=1e-12)
        assert t_vp == pytest.approx(2 / math.pi * math.atan2(t, 1 - t))


@each_path
@pytest.mark.parametrize("num_steps", [1, 2, 4, 8])
def test_the_matched_control_is_as_cold_as_elf_in_every_state_and_draws_nothing(path: Path, num_steps: int) -> None:
    rule = ElfReinjection(1.5)
    torch.testing.assert_close(
        shares_of_noise(path, MatchedCooling(rule), num_steps),
        shares_of_noise(path, rule, num_steps),
        rtol=1e-9,
        atol=0,
    )
    for _, _, weights in exact_states(
        FlowSampler(path, reinjection=MatchedCooling(rule), noise=BasisNoise()), num_steps
    ):
        assert not weights[1:].any()


def test_a_rule_of_more_than_time_has_no_matched_control() -> None:
    rule = MatchedCooling(CommitmentReinjection(lambda x1_hat: torch.zeros(x1_hat.shape[:2])))
    with pytest.raises(ValueError, match="CommitmentReinjection cannot be matched"):
        shares_of_noise(linear_path(), rule, 4)


@pytest.mark.parametrize("gamma", [-0.5, math.nan, math.inf])
def test_an_impossible_gamma_is_named(gamma: float) -> None:
    with pytest.raises(ValueError, match=f"ELF's gamma is {gamma}"):
        ElfReinjection(gamma)


@pytest.mark.parametrize("gamma", [0.0, 0.3, 5.0, 1e3, 1e17])
@pytest.mark.parametrize("num_steps", [1, 2, 3, 7])
def test_any_gamma_gives_shares_that_add_up_to_one(gamma: float, num_steps: int) -> None:
    plan = ElfReinjection(gamma).plan(linear_path(), UniformGrid().times(num_steps).double())
    for weights in (plan.initial, *plan.steps):
        assert 0 <= weights.kept <= 1 and 0 <= weights.fresh <= 1 + 1e-12
        assert weights.kept + weights.fresh == pytest.approx(1, abs=1e-12)
