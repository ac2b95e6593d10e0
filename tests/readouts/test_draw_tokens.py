"""Laws of drawing: frequencies, temperature, nucleus, log-probabilities, independence of rows."""

import pytest
import torch

from fewstep.readouts import draw_tokens
from tests.nn.builders import normal

PROBS = torch.tensor([0.05, 0.4, 0.0, 0.25, 0.2, 0.1], dtype=torch.float64)
LOGITS = PROBS.log()


def test_an_even_comb_of_uniforms_gives_every_token_its_share_to_within_one() -> None:
    u = (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000
    ids, _ = draw_tokens(LOGITS.expand(1000, -1), u)
    assert ((ids.bincount(minlength=len(PROBS)) - 1000 * PROBS).abs() <= 1).all()
    assert (ids.diff() >= 0).all(), "inversion is monotone in u"
    assert not (ids == 2).any(), "a token of probability 0 is never drawn"


@pytest.mark.parametrize(
    ("settings", "kept"),
    [
        ({}, {0, 1, 3, 4, 5}),
        ({"temperature": 0.5}, {0, 1, 3, 4, 5}),
        ({"top_p": 0.39}, {1}),
        ({"top_p": 0.41}, {1, 3}),
        ({"top_p": 0.66}, {1, 3, 4}),
        ({"temperature": 0.5, "top_p": 0.55}, {1}),  # of which it then holds 0.6
        ({"top_k": 1}, {1}),
        ({"top_k": 4}, {1, 3, 4, 5}),
        ({"top_k": 6}, {0, 1, 3, 4, 5}),
        ({"top_k": 2, "top_p": 0.6}, {1}),  # which holds 0.4 / 0.65 of what is left
        ({"temperature": 2.0, "top_p": 0.7, "top_k": 4}, {1, 3, 4}),
    ],
)
def test_tempered_tokens_are_kept_in_their_proportions_and_log_probs_are_theirs(settings: dict, kept: set[int]) -> None:
    count = 20_000
    u = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    ids, log_probs = draw_tokens(LOGITS.expand(count, -1), u, **settings)
    left = torch.where(torch.tensor([v in kept for v in range(6)]), PROBS, 0.0)
    expected = left ** (1 / settings.get("temperature", 1))
    expected = expected / expected.sum()
    assert set(ids.tolist()) == kept
    torch.testing.assert_close(ids.bincount(minlength=6).double() / count, expected, rtol=0, atol=2 / count)
    torch.testing.assert_close(log_probs.double(), expected[ids].log(), rtol=0, atol=1e-6)


def test_top_k_holds_at_ties() -> None:
    assert len(draw_tokens(torch.zeros(1000, 5), torch.arange(1000) / 1000, top_k=2)[0].unique()) == 2


def test_temperature_zero_is_the_argmax_and_the_limit_of_small_ones(generator: torch.Generator) -> None:
    logits, u = normal((50, 7), generator), torch.rand(50, generator=generator)
    ids, log_probs = draw_tokens(logits, u, temperature=0)
    assert torch.equal(ids, logits.argmax(-1)) and (log_probs == 0).all()
    for small in (1e-4, 1e-300, 5e-324):
        near, near_log_probs = draw_tokens(logits, u, temperature=small)
        assert torch.equal(near, ids)
        torch.testing.assert_close(near_log_probs, log_probs, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.7, 0.8), (0.0, 1.0)])
def test_each_draw_depends_on_its_own_row_alone(temperature: float, top_p: float, generator: torch.Generator) -> None:
    logits, u = normal((4, 5, 9), generator), torch.rand((4, 5), generator=generator)
    ids, log_probs = draw_tokens(logits, u, temperature=temperature, top_p=top_p)
    for b in range(4):
        for n in range(5):
            alone = draw_tokens(logits[b, n], u[b, n], temperature=temperature, top_p=top_p)
            assert alone[0] == ids[b, n] and alone[1] == log_probs[b, n]


@pytest.mark.parametrize(
    ("temperature", "top_p"),
    [(-0.1, 1.0), (float("nan"), 1.0), (float("inf"), 1.0), (1.0, 0.0), (1.0, 1.1), (0.0, -1.0), (1.0, float("nan"))],
)
def test_settings_out_of_range_are_refused(temperature: float, top_p: float) -> None:
    with pytest.raises(ValueError, match=r"^(temperature|top_p) is (-|nan|inf|0|1.1).*: expected a .*number[^\n]*$"):
        draw_tokens(LOGITS, torch.tensor(0.5), temperature=temperature, top_p=top_p)
    with pytest.raises(ValueError, match=r"^top_k is 0: expected a whole number of at least 1"):
        draw_tokens(LOGITS, torch.tensor(0.5), top_k=0)
