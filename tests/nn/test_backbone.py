"""Laws of the denoisers' body: modulation that starts at nothing, one time or two."""

import pytest
import torch

from fewstep.nn import AdaptiveTransformer
from tests.nn.builders import first, normal, randomised, seeded


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


def test_every_modulation_of_a_fresh_body_can_learn_to_read_time(generator: torch.Generator) -> None:
    body = seeded(build)
    weights = normal((3, 4, 8), generator)
    (body(normal((3, 4, 8), generator), torch.rand(3, generator=generator)) * weights).sum().backward()
    for block in body.blocks:
        assert min(part.abs().max() for part in block.modulation.weight.grad.chunk(6)) > 0


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


def test_padding_changes_nothing_at_real_positions(generator: torch.Generator) -> None:
    body, h, t = randomised(build), normal((2, 5, 8), generator), torch.tensor([0.2, 0.7])
    padded = torch.cat([h, 50 * normal((2, 3, 8), generator)], 1)
    torch.testing.assert_close(body(padded, t, mask=first([5, 5], 8))[:, :5], body(h, t), rtol=0, atol=1e-10)
