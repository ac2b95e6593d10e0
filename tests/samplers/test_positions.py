"""Re-injection by latent position: fresh noise where a position is undecided."""

import math

import pytest
import torch
from torch import Tensor

from fewstep.paths import Path, linear_path, variance_preserving_path
from fewstep.samplers import FlowSampler, Noise, Solver, euler, heun
from fewstep.samplers.rules import by_position, linear
from fewstep.shapes import example_generators, randn
from tests.samplers.bases import basis_noise, each_path, each_solver, noise, unit
from tests.toys import ExactModel, MixingModel


def _undecided(x1_hat: Tensor, mask: Tensor) -> Tensor:
    return torch.zeros(x1_hat.shape[:2])


@each_path
@pytest.mark.parametrize("strength", [0.3, 1.0, linear(0.9, 0.4)], ids=["number", "one", "rule"])
def test_with_euler_positions_of_one_strength_are_the_rule_itself(path: Path, strength: object) -> None:
    positions, shared = (
        FlowSampler(path, reinjection=rule, decidedness=_undecided).sample(
            MixingModel(path), noise(2, 3, 4), num_steps=4, generator=torch.Generator().manual_seed(1)
        )
        for rule in (by_position(strength), strength)
    )
    for state, twin in zip(positions.states, shared.states, strict=True):
        torch.testing.assert_close(state, twin, rtol=0, atol=2e-7)  # t~ passes through an arcsine


@each_path
@each_solver
def test_in_one_step_decided_positions_follow_the_ode_and_undecided_ones_forget_their_noise(
    path: Path, solver: Solver
) -> None:
    decided = torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 1.0]])
    x_0, model = noise(2, 3, 4), MixingModel(path)
    mixed = FlowSampler(
        path, solver=solver, reinjection="by_position", decidedness=lambda x1_hat, mask: decided
    ).iterate(model, x_0, num_steps=4, generator=torch.Generator().manual_seed(1))
    plain = FlowSampler(path, solver=solver).iterate(MixingModel(path), x_0, num_steps=4, generator=torch.Generator())
    next(mixed), next(plain)
    state, flow = next(mixed), next(plain)
    assert torch.equal(state.x_t[decided == 1], flow.x_t[decided == 1])
    xi = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(1)).double()
    x_t, t, self_cond = model.calls[-1]  # the latest prediction: Heun's is made at the end of the step
    latest = model.denoise(x_t, t, self_cond=self_cond)
    renoised = path.sample(latest, xi, torch.full((2,), state.time, dtype=torch.float64))
    assert torch.equal(state.x_t[decided == 0], renoised[decided == 0])


def test_decidedness_is_asked_for_the_prediction_of_every_step_but_the_last_and_counted() -> None:
    asked: list[Tensor] = []

    def decidedness(x1_hat: Tensor, mask: Tensor) -> Tensor:
        asked.append(x1_hat)
        return x1_hat[..., 0].sigmoid()

    trajectory = FlowSampler(linear_path(), solver=heun, reinjection="by_position", decidedness=decidedness).sample(
        MixingModel(linear_path()), noise(2, 3, 4), num_steps=4, generator=torch.Generator()
    )
    assert len(asked) == 3 and trajectory.nfe == 7 + 3
    assert all(torch.equal(a, b) for a, b in zip(asked, trajectory.predictions, strict=False))


@each_solver
def test_a_sample_does_not_depend_on_how_decided_its_batch_is(solver: Solver) -> None:
    path = variance_preserving_path()
    sampler = FlowSampler(
        path,
        solver=solver,
        reinjection="by_position:0.8",
        # Some examples of the batch are decided altogether, others not: nobody's draws may shift with a neighbour.
        decidedness=lambda x1_hat, mask: (8 * x1_hat.mean(-1)).sigmoid().round(),
    )

    def samples(batches: list[int]) -> Tensor:
        start, ends = 0, []
        for count in batches:
            generators = example_generators(3, start, count)
            x_0 = randn((count, 2, 5), torch.empty(0), generators)
            ends.append(sampler.sample(MixingModel(path), x_0, num_steps=4, generator=generators).x_1)
            # What a readout would draw next from the same generator does not depend on the batch either.
            ends[-1] = torch.cat([ends[-1].flatten(1), randn((count, 1), x_0, generators)], 1)
            start += count
        return torch.cat(ends)

    together = samples([6])
    for batches in ([1] * 6, [2, 4]):
        torch.testing.assert_close(samples(batches), together, rtol=0, atol=1e-6)


def test_padding_stays_zero_whatever_the_decidedness_there() -> None:
    mask = torch.tensor([[True, True, False], [True, False, False]])

    def decidedness(x1_hat: Tensor, real: Tensor) -> Tensor:
        assert torch.equal(real, mask) and not x1_hat[~mask].any()
        return torch.where(mask, 0.3, math.nan)

    states = FlowSampler(linear_path(), reinjection="by_position", decidedness=decidedness).iterate(
        MixingModel(linear_path()), noise(2, 3, 4), num_steps=3, mask=mask, generator=torch.Generator()
    )
    assert all(not state.x_t[~mask].any() and state.x_t[mask].isfinite().all() for state in states)


@pytest.mark.parametrize(
    "answer", [torch.zeros(2), torch.zeros(2, 3, 4), torch.full((2, 3), 1.1), torch.full((2, 3), math.nan)]
)
def test_decidedness_of_another_shape_or_outside_0_to_1_is_named(answer: Tensor) -> None:
    sampler = FlowSampler(linear_path(), reinjection="by_position", decidedness=lambda x1_hat, mask: answer)
    with pytest.raises(ValueError, match=r"decidedness has shape .* expected \(2, 3\), from 0"):
        sampler.sample(MixingModel(linear_path()), noise(2, 3, 4), num_steps=2, generator=torch.Generator())


class _ShrinkingModel(ExactModel):
    """Posterior mean for x_1 ~ N(0, variance), which is linear, so that states stay vectors of weights."""

    variance = 0.3

    def denoise(self, x_t: Tensor, t: Tensor, *, mask: Tensor | None = None, self_cond: Tensor | None = None) -> Tensor:
        """E[x_1 | x_t]."""
        alpha, sigma = self.path.alpha_sigma(t, x_t)
        return alpha * self.variance / (alpha**2 * self.variance + sigma**2) * x_t


def _root_of_step(path: Path, times: Tensor) -> Noise:
    """gamma = sqrt(3 (s - t)): with finer steps the sampler becomes a stochastic differential equation."""
    return Noise.preserving((3 * times.diff()).clamp(max=1).sqrt())


@pytest.mark.parametrize(
    ("path", "rule"),
    [
        (linear_path(), by_position(_root_of_step)),
        (variance_preserving_path(), by_position(_root_of_step)),
        (linear_path(), _root_of_step),
    ],
    ids=["linear_by_position", "variance_preserving_by_position", "linear_shared"],
)
def test_heun_renews_noise_around_the_prediction_that_keeps_it_accurate(path: Path, rule: object) -> None:
    """The end's standard deviation is exact in the limit for any strength. In 40 steps, Heun with the noise renewed
    around its latest prediction errs less than a sixth of what Euler does; around the first, a third or more."""

    def error(solver: Solver) -> float:
        sampler = FlowSampler(path, solver=solver, reinjection=rule, decidedness=_undecided)
        x_0 = unit(1).expand(1, 1, -1)
        with basis_noise():
            end = sampler.sample(_ShrinkingModel(path), x_0, num_steps=40, generator=torch.Generator()).x_1
        return abs(end.norm().item() - math.sqrt(_ShrinkingModel.variance))

    assert error(heun) < error(euler) / 6
