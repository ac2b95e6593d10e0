"""Decidedness, late flips and the step at which tokens settle."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fewstep.diagnostics.trajectories import decidedness, decision_step, late_flip_rate, unigram_collision
from fewstep.paths import linear_path
from fewstep.samplers import FlowSampler
from tests.diagnostics.decoders import normal, plain, seeded
from tests.toys import PointSetModel


def _same(ids: Tensor) -> Tensor:
    """Latents that are token ids already."""
    return ids


def _draws(probabilities: Tensor, num_tokens: int):
    """Continuations that draw every token anew, whatever the state."""

    def continue_from(x_t: Tensor, t: float, generator: torch.Generator) -> Tensor:
        return torch.multinomial(probabilities, len(x_t) * num_tokens, True, generator=generator).view(len(x_t), -1)

    return continue_from


def test_a_state_that_always_ends_alike_is_fully_decided() -> None:
    states = [(0.0, normal(3, 5)), (0.5, normal(3, 5, seed=1))]
    result = decidedness(
        lambda x_t, t, generator: x_t, lambda x: (x > 0).long(), states, unigram_collision=0.3, generator=seeded()
    )
    assert list(result.curves["decidedness"].y) == [1.0, 1.0]
    assert result.facts["times"] == (0.0, 0.5)
    assert [row.name for row in result.rows] == ["decidedness_at_0", "decidedness_at_0.5"]
    assert result.curves["decidedness"].x == (0.0, 0.5)
    plain(result)
    one_token = decidedness(_draws(torch.ones(1), 3), _same, states, unigram_collision=1, generator=seeded())
    assert one_token.rows[0].estimate.value is None and one_token.curves["decidedness"].x == ()
    with pytest.raises(ValueError, match="num_continuations is 1"):
        decidedness(
            _draws(torch.ones(1), 3), _same, states, num_continuations=1, unigram_collision=0.1, generator=seeded()
        )
    assert unigram_collision(torch.tensor([[0, 0, 1], [2, 9, 9]])) == pytest.approx((4 + 1 + 1 + 4) / 36)


@pytest.mark.parametrize("num_continuations", [2, 16])
def test_tokens_drawn_from_the_unigram_prior_are_not_decided_at_all(num_continuations: int) -> None:
    p = torch.tensor([0.6, 0.3, 0.1])
    result = decidedness(
        _draws(p, 40),
        _same,
        [(0.2, normal(200, 2))],
        num_continuations=num_continuations,
        unigram_collision=float(p.square().sum()),
        generator=seeded(),
    )
    one = result.rows[0].estimate
    # unbiased also for a single pair: 8000 tokens, each with a variance of at most 1/4 / (1 - u)^2
    assert abs(one.value) < 4 * 0.5 / 0.54 / 8000**0.5
    assert one.interval.low <= 0 <= one.interval.high or abs(one.value) < 0.01


def test_decidedness_of_a_flow_rises_from_the_prior_to_certainty() -> None:
    # Eight points, one token each: at t = 0 re-injected noise chooses freely among them, near the end no longer.
    points = 3 * normal(8, 2, 3, dtype=torch.float32)
    model, sampler = PointSetModel(linear_path(), points, torch.full((8,), 1 / 8)), FlowSampler(linear_path())
    stirred = FlowSampler(linear_path(), reinjection=1.0)
    whole = sampler.sample(model, normal(100, 2, 3, seed=1, dtype=torch.float32), num_steps=16, generator=seeded())
    step_of = {float(t): k for k, t in enumerate(whole.times)}

    def continue_from(x_t: Tensor, t: float, generator: torch.Generator) -> Tensor:
        return stirred.sample(model, x_t, num_steps=16, start_step=step_of[t], generator=generator).x_1

    def read(x_1: Tensor) -> Tensor:
        return torch.cdist(x_1.flatten(1), points.flatten(1)).argmin(-1)[:, None]

    states = [(float(whole.times[k]), whole.states[k]) for k in (0, 4, 8, 12, 15)]
    result = decidedness(continue_from, read, states, unigram_collision=1 / 8, generator=seeded())
    values = list(result.curves["decidedness"].y)
    assert all(a < b + 0.03 for a, b in pairwise(values))
    assert values[0] < 0.7 < 0.9 < values[3]
    assert values[-1] == 1  # the last step adds no noise


PREDICTIONS = [
    torch.tensor([[1, 1, 1, 1], [0, 0, 0, 0]]),
    torch.tensor([[1, 2, 1, 1], [0, 0, 5, 0]]),
    torch.tensor([[1, 2, 2, 1], [0, 0, 0, 0]]),
    torch.tensor([[1, 2, 2, 3], [0, 0, 0, 9]]),
]


def test_late_flips_and_decision_steps_of_a_trajectory_worked_out_by_hand() -> None:
    late = late_flip_rate(PREDICTIONS, _same, generator=seeded())
    assert late["late_flip_rate"].value == 2 / 8
    steps = decision_step(PREDICTIONS, _same, generator=seeded())
    assert steps.curves["shares"].y == (3 / 8, 1 / 8, 2 / 8, 2 / 8)
    assert steps["decision_step"].value == (3 * 1 + 1 * 2 + 2 * 3 + 2 * 4) / 8
    assert steps.picture().kind == "bars" and steps.picture().series[0].x == (1.0, 2.0, 3.0, 4.0)
    assert steps.rows[0].note == "of 4"
    late, steps = (
        measure(PREDICTIONS[:1], _same, generator=seeded()) for measure in (late_flip_rate, decision_step)
    )  # one step settles at once and has no late flip
    assert late["late_flip_rate"].value is None and late["late_flip_rate"].num_examples == 2
    assert steps.curves["shares"].y == (1.0,) and steps["decision_step"].value == 1


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 2**31), num_steps=st.integers(2, 6), vocabulary=st.integers(1, 3))
def test_decision_steps_agree_with_their_definition_and_their_last_bar_with_the_late_flips(
    seed: int, num_steps: int, vocabulary: int
) -> None:
    tokens = torch.randint(vocabulary, (num_steps, 3, 4), generator=seeded(seed))
    expected = torch.zeros(num_steps)
    for path in tokens.flatten(1).T.tolist():
        first = next(k for k in range(num_steps) if len(set(path[k:])) == 1)
        expected[first] += 1 / 12
    steps = decision_step(list(tokens), _same, generator=seeded())
    torch.testing.assert_close(torch.tensor(steps.curves["shares"].y), expected)
    late = late_flip_rate(list(tokens), _same, generator=seeded())
    assert late["late_flip_rate"].value == pytest.approx(steps.curves["shares"].y[-1])
    plain(late), plain(steps)
