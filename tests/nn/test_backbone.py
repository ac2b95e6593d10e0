"""Laws of the denoisers' body: modulation that starts at nothing, one time or two."""

import pytest
import torch

from fewstep.nn import AdaptiveTransformer
from tests.nn.builders import normal, randomised, seeded


def build(two_times: bool = False) -> AdaptiveTransformer:
    return AdaptiveTransformer(8, 2, 2, two_times=two_times)


def test_a_fresh_body_is_a_plain_pre_norm_transformer_that_ignores_time(generator: torch.Generator) -> None:
    body, h = seeded(build), normal((3, 4, 8), generator)
    plain = h
    for block in body.blocks:
        plain = plain + block.local(torch.nn.functional.layer_norm(plain, (8,)))
        plain = plain + block.attention(torch.nn.functional.layer_norm(plain, (8,)))
        plain = plain + block.mlp(torch.nn.functional.layer_norm(plain, (8,)))
    for time in (0.0, 0.3, 1.0):
        torch.testing.assert_close(body(h, torch.full((3,), time)), body.norm(plain), rtol=0, atol=1e-12)


def test_a_trained_body_reads_time_for_each_example_alone(generator: torch.Generator) -> None:
    body, h = randomised(build), normal((1, 4, 8), generator).expand(2, -1, -1)
    y = body(h, torch.tensor([0.2, 0.7]))
    assert (y[0] - y[1]).abs().max() > 1e-2
    torch.testing.assert_close(y[1:], body(h[:1], torch.tensor([0.7])), rtol=0, atol=1e-12)


def test_a_second_time_is_refused_unless_the_body_was_built_for_it(generator: torch.Generator) -> None:
    h, t = normal((1, 4, 8), generator), torch.tensor([0.2])
    with pytest.raises(ValueError, match="two_times=True"):
        randomised(build)(h, t, torch.tensor([0.5]))
    body = randomised(lambda: build(two_times=True))
    assert torch.equal(body(h, t), body(h, t, t)), "no second time means no distance"
    assert (body(h, t, torch.tensor([0.9])) - body(h, t)).abs().max() > 1e-2


@pytest.mark.parametrize("two_times", [False, True])
def test_a_low_frequency_makes_the_body_slow_in_every_time(two_times: bool, generator: torch.Generator) -> None:
    h, t, s = normal((3, 4, 8), generator), torch.tensor([0.2, 0.4, 0.6]), torch.tensor([0.7, 0.8, 0.9])
    moved = []
    for max_frequency in (1000.0, 3.0):
        make = lambda f=max_frequency: AdaptiveTransformer(8, 2, 2, two_times=two_times, max_frequency=f)  # noqa: E731
        body, step = randomised(make), 1e-3
        before = body(h, t, s if two_times else None)
        changes = [body(h, t + step, s + step) if two_times else body(h, t + step)]  # of t alone, s - t held
        changes += [body(h, t, s + step)] if two_times else []
        moved.append(torch.stack([(change - before).abs().mean() for change in changes]) / step)
    assert bool((moved[0] > 20 * moved[1]).all()), moved
    assert bool((moved[1] > 0).all())


def test_a_second_time_can_be_made_to_start_without_effect(generator: torch.Generator) -> None:
    body, h = randomised(lambda: build(two_times=True)), normal((2, 4, 8), generator)
    t, ends = torch.tensor([0.2, 0.4]), (torch.tensor([0.2, 0.4]), torch.tensor([1.0, 0.5]))
    assert not torch.allclose(*(body(h, t, s) for s in ends))
    body.ignore_second_time()
    assert torch.equal(*(body(h, t, s) for s in ends))


@pytest.mark.parametrize("max_frequency", [0.5, float("inf"), float("nan")])
def test_a_frequency_that_is_none_is_refused(max_frequency: float) -> None:
    with pytest.raises(ValueError, match=f"max_frequency is {max_frequency}"):
        AdaptiveTransformer(8, 2, 2, max_frequency=max_frequency)
