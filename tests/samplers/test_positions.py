"""Re-injection by latent position, by how decided each one is."""

import math

import pytest
import torch
from torch import Tensor

from fewstep.paths import Path, linear_path, variance_preserving_path
from fewstep.samplers import (
    CommitmentReinjection,
    ConstantReinjection,
    EulerSolver,
    FlowSampler,
    HeunSolver,
    LinearReinjection,
    Solver,
    TimedReinjection,
)
from fewstep.shapes import example_generators, randn
from tests.samplers.bases import BasisNoise, unit
from tests.toys import ExactModel, MixingModel

PATHS = [linear_path(), variance_preserving_path()]
each_path = pytest.mark.parametrize("path", PATHS, ids=["linear", "variance_preserving"])
each_solver = pytest.mark.parametrize("solver", [EulerSolver(), HeunSolver()], ids=["euler", "heun"])


def _noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _open(x1_hat: Tensor) -> Tensor:
    return torch.zeros(x1_hat.shape[:2])


@each_path
@pytest.mark.parametrize("strength", [0.3, 1.0, LinearReinjection(0.9, 0.4)], ids=["number", "one", "schedule"])
def test_with_euler_positions_of_one_strength_are_the_schedule_itself(
    path: Path, strength: float | TimedReinjection
) -> None:
    by_position, shared = (
        FlowSampler(path, reinjection=rule).sample(
            MixingModel(path), _noise(2, 3, 4), num_steps=4, generator=torch.Generator().manual_seed(1)
        )
        for rule in (CommitmentReinjection(_open, strength), strength)
    )
    for state, twin in zip(by_position.states, shared.states, strict=True):
        torch.testing.assert_close(state, twin, rtol=0, atol=2e-7)  # t~ passes through an arcsine


@each_path
@each_solver
def test_in_one_step_decided_positions_follow_the_ode_and_open_ones_forget_their_noise(
    path: Path, solver: Solver
) -> None:
    decided = torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 1.0]])
    rule = CommitmentReinjection(lambda x1_hat: decided)
    x_0, model = _noise(2, 3, 4), MixingModel(path)
    mixed = FlowSampler(path, solver, reinjection=rule).iterate(
        model, x_0, num_steps=4, generator=torch.Generator().manual_seed(1)
    )
    plain = FlowSampler(path, solver).iterate(MixingModel(path), x_0, num_steps=4, generator=torch.Generator())
    next(mixed), next(plain)
    state, flow = next(mixed), next(plain)
    assert torch.equal(state.x_t[decided == 1], flow.x_t[decided == 1])
    xi = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(1)).double()
    x_t, t, self_cond = model.calls[-1]  # the latest prediction: Heun's is made at the end of the step
    latest = model.denoise(x_t, t, self_cond=self_cond)
    renoised = path.sample(latest, xi, torch.full((2,), state.time, dtype=torch.float64))
    assert torch.equal(state.x_t[decided == 0], renoised[decided == 0])


def test_the_rule_is_asked_with_the_prediction_of_the_state_in_every_step_but_the_last() -> None:
    asked: list[Tensor] = []

    def decided(x1_hat: Tensor) -> Tensor:
        asked.append(x1_hat)
        return x1_hat[..., 0].sigmoid()

    trajectory = FlowSampler(linear_path(), HeunSolver(), reinjection=CommitmentReinjection(decided)).sample(
        MixingModel(linear_path()), _noise(2, 3, 4), num_steps=4, generator=torch.Generator()
    )
    assert len(asked) == 3 and trajectory.nfe == 7
    assert all(torch.equal(a, b) for a, b in zip(asked, trajectory.predictions, strict=False))


@each_solver
def test_a_sample_does_not_depend_on_how_decided_its_batch_is(solver: Solver) -> None:
    path = variance_preserving_path()
    # Some examples of the batch are decided altogether, others open: nobody's draws may shift with a neighbour.
    rule = CommitmentReinjection(lambda x1_hat: (8 * x1_hat.mean(-1)).sigmoid().round(), 0.8)

    def samples(batches: list[int]) -> Tensor:
        start, ends = 0, []
        for count in batches:
            generators = example_generators(3, start, count)
            x_0 = randn((count, 2, 5), torch.empty(0), generators)
            sampler = FlowSampler(path, solver, reinjection=rule)
            ends.append(sampler.sample(MixingModel(path), x_0, num_steps=4, generator=generators).x_1)
            # What a readout would draw next from the same generator does not depend on the batch either.
            ends[-1] = torch.cat([ends[-1].flatten(1), randn((count, 1), x_0, generators)], 1)
            start += count
        return torch.cat(ends)

    together = samples([6])
    for batches in ([1] * 6, [2, 4]):
        torch.testing.assert_close(samples(batches), together, rtol=0, atol=1e-6)


def test_padding_stays_zero_whatever_the_rule_says_there() -> None:
    mask = torch.tensor([[True, True, False], [True, False, False]])
    seen: list[Tensor] = []

    def decided(x1_hat: Tensor) -> Tensor:
        seen.append(x1_hat)
        return torch.where(mask, 0.3, math.nan)

    states = FlowSampler(linear_path(), reinjection=CommitmentReinjection(decided)).iterate(
        MixingModel(linear_path()), _noise(2, 3, 4), num_steps=3, mask=mask, generator=torch.Generator()
    )
    assert all(not state.x_t[~mask].any() and state.x_t[mask].isfinite().all() for state in states)
    assert all(not x1_hat[~mask].any() for x1_hat in seen)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (torch.zeros(2), r"decided has shape \(2,\) for predictions \(2, 3, 4\)"),
        (torch.zeros(2, 3, 4), r"decided has shape \(2, 3, 4\)"),
        (torch.full((2, 3), 1.1), "decided lies between 1.1 and 1.1"),
        (torch.full((2, 3), math.nan), "decided lies between nan and nan"),
    ],
)
def test_an_answer_that_is_none_is_named(answer: Tensor, message: str) -> None:
    sampler = FlowSampler(linear_path(), reinjection=CommitmentReinjection(lambda x1_hat: answer))
    with pytest.raises(ValueError, match=message):
        sampler.sample(MixingModel(linear_path()), _noise(2, 3, 4), num_steps=2, generator=torch.Generator())


def test_strengths_that_do_not_fit_are_named_before_any_evaluation() -> None:
    model = MixingModel(linear_path())
    with pytest.raises(ValueError, match="2 re-injection strengths for 3 steps"):
        FlowSampler(linear_path(), reinjection=CommitmentReinjection(_open, [0.1, 0.2])).iterate(
            model, _noise(1, 2, 3), num_steps=3, generator=torch.Generator()
        )
    with pytest.raises(ValueError, match=r"strength is 1\.2"):
        CommitmentReinjection(_open, 1.2)
    assert not model.calls


class _ShrinkingModel(ExactModel):
    """Posterior mean for x_1 ~ N(0, variance), which is linear, so that states stay vectors of weights."""

    variance = 0.3

    def denoise(self, x_t: Tensor, t: Tensor, *, mask: Tensor | None = None, self_cond: Tensor | None = None) -> Tensor:
        """E[x_1 | x_t]."""
        alpha, sigma = self.path.alpha_sigma(t, x_t)
        return alpha * self.variance / (alpha**2 * self.variance + sigma**2) * x_t


class _RootOfStep(TimedReinjection):
    """gamma = sqrt(3 (s - t)): with finer steps the sampler becomes a stochastic differential equation."""

    def strengths(self, path: Path, times: Tensor) -> Tensor:
        """(N,) float64."""
        return (3 * times.diff()).clamp(max=1).sqrt()


@pytest.mark.parametrize(
    ("path", "by_position"),
    [(linear_path(), True), (variance_preserving_path(), True), (linear_path(), False)],
    ids=["linear_by_position", "variance_preserving_by_position", "linear_shared"],
)
def test_heun_renews_noise_around_the_prediction_that_keeps_it_accurate(path: Path, by_position: bool) -> None:
    """The end's standard deviation is exact in the limit for any strength. In 40 steps, Heun with the noise renewed
    around its latest prediction errs less than a sixth of what Euler does; around the first, a third or more."""

    def error(solver: Solver) -> float:
        rule = CommitmentReinjection(_open, _RootOfStep()) if by_position else _RootOfStep()
        sampler = FlowSampler(path, solver, reinjection=rule, noise=BasisNoise())
        end = sampler.sample(
            _ShrinkingModel(path), unit(1).expand(1, 1, -1), num_steps=40, generator=torch.Generator()
        ).x_1
        return abs(end.norm().item() - math.sqrt(_ShrinkingModel.variance))

    assert error(HeunSolver()) < error(EulerSolver()) / 6


def test_a_constant_and_its_number_are_one_rule() -> None:
    ends = [
        FlowSampler(linear_path(), reinjection=CommitmentReinjection(_open, strength))
        .sample(MixingModel(linear_path()), _noise(2, 3, 4), num_steps=3, generator=torch.Generator().manual_seed(1))
        .x_1
        for strength in (0.4, [0.4, 0.4, 0.0], ConstantReinjection(0.4))
    ]
    assert torch.equal(ends[0], ends[1]) and torch.equal(ends[0], ends[2])
