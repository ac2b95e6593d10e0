"""A model's parts as callables: the head's draws are its conditionals, trajectories are those of the sampler."""

import pytest
import torch
from torch import Tensor

from fewstep.denoisers import FlowModel
from fewstep.evaluation.adapters import HeadConditionals, continuation
from fewstep.evaluation.measurements import MEASUREMENTS
from fewstep.evaluation.subject import NUM_STEPS, Subject
from fewstep.samplers import FlowSampler
from fewstep.shapes import randn
from tests.bundles import BLOCK_SIZE, tiny_bundle, with_identity
from tests.evaluation.subjects import mild_bundle, tiny_subject

NUM_DRAWS = 4000
LEVEL = 1.5


@pytest.fixture(scope="module")
def subject() -> Subject:
    return tiny_subject(mild_bundle(self_conditioning=True))


def conditionals(level: float = LEVEL) -> HeadConditionals:
    return HeadConditionals(tiny_bundle().commitment_head(), level)


def excess(ids: Tensor, probabilities: Tensor) -> Tensor:
    """How far the counts of ``ids`` (M, L) lie from the sums of ``probabilities`` (M, L, V), in deviations, (L,)."""
    expected = probabilities.sum(0)
    counts = torch.nn.functional.one_hot(ids, probabilities.shape[-1]).double().sum(0)
    squares = ((counts - expected).square() / expected.clamp(min=1e-9)).sum(-1)
    freedom = probabilities.shape[-1] - 1
    return (squares - freedom) / (2 * freedom) ** 0.5


def test_draws_follow_the_conditionals_token_by_token(subject: Subject, generator: torch.Generator) -> None:
    z = subject.z[:1].expand(NUM_DRAWS, -1, -1)
    head = conditionals()
    ids = head.draw(z, generator)
    assert ids.shape == (NUM_DRAWS, BLOCK_SIZE)
    with torch.no_grad():
        follows = head.logits(z, ids).double().softmax(-1)
        shuffled = head.logits(z, ids.roll(1, 0)).double().softmax(-1)
        elsewhere = conditionals(0.0).logits(z, ids).double().softmax(-1)
    assert float(excess(ids, follows).abs().max()) < 6
    # The comparison has the power to tell other conditionals apart: those of another level, and of other tokens.
    assert float(excess(ids, elsewhere).min()) > 20
    surprise = -follows.gather(-1, ids[..., None])[..., 0].log()
    entropy = torch.special.entr(follows).sum(-1)
    gap, spread = (surprise - entropy).mean(0), surprise.std(0) / NUM_DRAWS**0.5
    assert bool((gap.abs() < 5 * spread).all())
    wrong = -shuffled.gather(-1, ids[..., None])[..., 0].log() - torch.special.entr(shuffled).sum(-1)
    assert bool((wrong.mean(0)[1:] > 10 * spread[1:]).all())


def test_the_head_is_told_the_level_and_adds_no_noise(subject: Subject) -> None:
    network, mask = tiny_bundle().head, torch.ones(subject.z.shape[:2], dtype=torch.bool)
    with torch.no_grad():
        for level in (0.0, LEVEL):
            context = network.context(subject.z, mask, torch.full((len(subject.z),), level))
            expected = network(network.shift_right(subject.data), context)
            found = conditionals(level).logits(subject.z, subject.data)
            torch.testing.assert_close(found, expected)
        read = subject.read_head(0.0).logits(subject.z, subject.data)
        assert torch.equal(subject.given_text()(subject.z), read)
        assert not torch.allclose(found, conditionals(0.0).logits(subject.z, subject.data), atol=0.1)


@torch.no_grad()
def by_hand(
    flow: FlowModel, x: Tensor, times: Tensor, gamma: float, generator: torch.Generator
) -> tuple[list[Tensor], list[Tensor]]:
    """States and predictions on the linear path: noise estimated, partly drawn again, none in the last step."""
    states, predictions = [x], []
    for t, s in zip(times[:-1].tolist(), times[1:].tolist(), strict=True):
        x1_hat = flow.denoise(x, torch.full((len(x),), t), self_cond=predictions[-1] if predictions else None)
        eps = (x - t * x1_hat) / (1 - t)
        if gamma and s < 1:
            eps = (1 - gamma**2) ** 0.5 * eps + gamma * randn(tuple(x.shape), x, generator)
        x = s * x1_hat + (1 - s) * eps
        states.append(x)
        predictions.append(x1_hat)
    return states, predictions


def test_a_trajectory_is_the_samplers_on_the_models_grid_from_the_subjects_noise(subject: Subject) -> None:
    flow, grid = subject.flow, subject.model.identity.default_grid()
    times = grid.times(NUM_STEPS).float()
    assert not torch.allclose(times, torch.linspace(0, 1, NUM_STEPS + 1), atol=0.01)
    torch.testing.assert_close(subject.trajectory.times, times)
    states, predictions = by_hand(flow, subject.starts("trajectory"), times, 0.0, subject.noise("reinjection"))
    for ours, theirs in ((subject.trajectory.states, states), (subject.trajectory.predictions, predictions)):
        torch.testing.assert_close(torch.stack(ours), torch.stack(theirs), rtol=1e-4, atol=1e-4)


def test_going_on_takes_exactly_the_steps_that_are_left_with_all_noise_drawn_again(subject: Subject) -> None:
    path, flow, calls = subject.trajectory, subject.flow, []
    go_on = continuation(subject.model, path.times)
    for step in (0, 3, NUM_STEPS - 1):
        x_t, t = path.states[step], float(path.times[step])
        hook = flow.network.register_forward_hook(lambda *_: calls.append(1))
        end = go_on(x_t, t, torch.Generator().manual_seed(7))
        hook.remove()
        assert len(calls) == NUM_STEPS - step
        calls.clear()
        states, _ = by_hand(flow, x_t, path.times[step:], 1.0, torch.Generator().manual_seed(7))
        torch.testing.assert_close(end, states[-1], rtol=1e-4, atol=1e-4)
        other = go_on(x_t, t, torch.Generator().manual_seed(8))
        assert torch.equal(end, other) == (step == NUM_STEPS - 1)


@pytest.mark.parametrize(
    ("identity", "strength", "num_steps"),
    [
        ({"estimate": "endpoint"}, 1.0, NUM_STEPS),
        ({"trained_nfe": 3}, 0.0, 3),
        ({"trained_nfe": 1}, 0.0, 1),
        ({"estimate": "flow_map"}, 0.0, NUM_STEPS),
    ],
)
def test_a_model_is_looked_at_by_steps_that_it_was_trained_for(
    subject: Subject, identity: dict[str, object], strength: float, num_steps: int
) -> None:
    own = tiny_subject(with_identity(mild_bundle(self_conditioning=True), **identity))
    sampler = FlowSampler(subject.flow.path, grid=subject.model.identity.default_grid(), reinjection=strength)
    noise = own.noise("reinjection")
    with torch.no_grad():
        expected = sampler.sample(subject.flow, own.starts("trajectory"), num_steps=num_steps, generator=noise)
    assert len(own.trajectory.predictions) == num_steps
    torch.testing.assert_close(own.trajectory.x_1, expected.x_1)
    for name in ("late_flips", "decidedness"):
        assert MEASUREMENTS[name].run(own)
