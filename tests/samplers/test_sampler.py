"""Promises of the loop: what the model is asked, what is yielded, padding, errors."""

import pytest
import torch
from torch import Tensor

from fewstep.paths import Path, linear_path, variance_preserving_path
from fewstep.samplers import FlowSampler, Solver, euler, heun
from fewstep.schedules import LogitNormalGrid
from tests.samplers.bases import each_path, each_solver, noise
from tests.toys import MixingModel, PointSetModel

each_gamma = pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0])


def _noise(*shape: int, seed: int = 0) -> Tensor:
    return noise(*shape, seed=seed, dtype=torch.float32)


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(1)


@pytest.mark.parametrize(
    ("solver", "gamma", "per_step"),
    [
        (euler, 0.0, [1, 1, 1, 1]),
        (euler, 0.5, [1, 1, 1, 1]),
        (heun, 0.0, [2, 2, 2, 1]),
        (heun, 0.5, [2, 2, 2, 1]),
        (heun, 1.0, [1, 1, 1, 1]),
    ],
)
def test_nfe_counts_every_call_and_none_is_made_at_the_end_of_time(
    solver: Solver, gamma: float, per_step: list[int]
) -> None:
    model, spent = MixingModel(linear_path()), 0
    states = FlowSampler(linear_path(), solver=solver, reinjection=gamma).iterate(
        model, _noise(2, 3, 4), num_steps=4, generator=_generator()
    )
    assert next(states).nfe == 0
    for calls, state in zip(per_step, states, strict=True):
        spent += calls
        assert state.nfe == len(model.calls) == spent
    assert all(t.shape == (2,) and t.dtype == torch.float32 and bool((t < 1).all()) for _, t, _ in model.calls)


@each_solver
@each_gamma
def test_each_call_is_conditioned_on_the_prediction_before_it(solver: Solver, gamma: float) -> None:
    path = variance_preserving_path()
    model = MixingModel(path)
    FlowSampler(path, solver=solver, reinjection=gamma).sample(
        model, _noise(2, 3, 4), num_steps=4, generator=_generator()
    )
    calls = list(model.calls)
    answers = [model.denoise(x_t, t, self_cond=self_cond) for x_t, t, self_cond in calls]
    assert calls[0][2] is None
    assert all(torch.equal(call[2], answer) for call, answer in zip(calls[1:], answers[:-1], strict=True))


@each_path
@each_solver
@each_gamma
def test_padding_stays_zero_and_influences_nothing(path: Path, solver: Solver, gamma: float) -> None:
    mask = torch.tensor([[True, True, False, False], [True, True, True, True], [True, False, False, False]])
    x_0 = _noise(3, 4, 2)
    disturbed = torch.where(mask.unsqueeze(-1), x_0, torch.full_like(x_0, float("nan")))
    sampler = FlowSampler(path, solver=solver, reinjection=gamma)
    clean, other = (
        sampler.sample(MixingModel(path), x, num_steps=3, mask=mask, generator=_generator()) for x in (x_0, disturbed)
    )
    for tensor, twin in zip(clean.states + clean.predictions, other.states + other.predictions, strict=True):
        assert torch.equal(tensor, twin)
        assert not tensor[~mask].any()
    if gamma == 0:
        alone = sampler.sample(MixingModel(path), x_0[1:2], num_steps=3, generator=torch.Generator())
        torch.testing.assert_close(clean.x_1[1:2], alone.x_1)


@each_path
@each_solver
@pytest.mark.parametrize("start_step", [0, 1, 2, 4])
def test_going_on_from_a_state_gives_the_rest_of_its_trajectory_where_nothing_is_drawn(
    path: Path, solver: Solver, start_step: int
) -> None:
    sampler = FlowSampler(path, solver=solver, grid=LogitNormalGrid())
    model = PointSetModel(path, _noise(5, 3, 4, seed=2), torch.full((5,), 0.2))  # not self-conditioned
    mask = torch.tensor([[True, True, True], [True, True, False]])
    whole = sampler.sample(model, _noise(2, 3, 4), num_steps=4, mask=mask, generator=_generator())
    rest = sampler.sample(
        model, whole.states[start_step], num_steps=4, start_step=start_step, mask=mask, generator=_generator()
    )
    assert torch.equal(whole.times, LogitNormalGrid().times(4)) and torch.equal(rest.times, whole.times[start_step:])
    assert len(rest.predictions) == 4 - start_step
    for tensor, twin in zip(
        rest.states + rest.predictions, whole.states[start_step:] + whole.predictions[start_step:], strict=True
    ):
        assert torch.equal(tensor, twin)


class _ShortGrid:
    """A grid that stops before the end of time."""

    def times(self, num_steps: int) -> Tensor:
        return torch.arange(num_steps + 1) / (num_steps + 1)


@pytest.mark.parametrize(
    ("settings", "arguments", "message"),
    [
        ({}, {"num_steps": 0}, "num_steps is 0"),
        ({}, {"num_steps": 2, "mask": torch.ones(1, 3, dtype=torch.bool)}, r"mask has shape \(1, 3\)"),
        ({}, {"num_steps": 4, "start_step": -1}, "start_step is -1 of 4 steps"),
        ({}, {"num_steps": 4, "start_step": 5}, "start_step is 5 of 4 steps"),
        ({"grid": _ShortGrid()}, {"num_steps": 2}, "rising times from 0 to 1"),
    ],
)
def test_arguments_that_do_not_fit_are_named_before_any_evaluation(
    settings: dict, arguments: dict, message: str
) -> None:
    model = MixingModel(linear_path())
    with pytest.raises(ValueError, match=message):
        FlowSampler(linear_path(), **settings).sample(model, _noise(1, 2, 3), generator=_generator(), **arguments)
    assert not model.calls
