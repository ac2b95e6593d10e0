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


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.5, 1.0), (2.0, 0.7), (1.0, 0.3)])
def test_log_probs_are_those_of_the_distribution_drawn_from(temperature: float, top_p: float) -> None:
    count = 200_000
    u = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    ids, log_probs = draw_tokens(LOGITS.expand(count, -1), u, temperature=temperature, top_p=top_p)
    share = ids.bincount(minlength=len(PROBS)).double() / count
    torch.testing.assert_close(share[ids], log_probs.double().exp(), rtol=0, atol=2 / count)


def test_temperature_raises_probabilities_to_its_inverse_power() -> None:
    u = (torch.arange(10_000, dtype=torch.float64) + 0.5) / 10_000
    ids, _ = draw_tokens(LOGITS.expand(10_000, -1), u, temperature=0.5)
    expected = PROBS.square() / PROBS.square().sum()
    assert ((ids.bincount(minlength=len(PROBS)) / 10_000 - expected).abs() <= 1e-4).all()


def test_temperature_zero_is_the_argmax_and_the_limit_of_small_ones(generator: torch.Generator) -> None:
    logits, u = normal((50, 7), generator), torch.rand(50, generator=generator)
    ids, log_probs = draw_tokens(logits, u, temperature=0)
    assert torch.equal(ids, logits.argmax(-1)) and (log_probs == 0).all()
    for small in (1e-4, 1e-300, 5e-324):
        near, near_log_probs = draw_tokens(logits, u, temperature=small)
        assert torch.equal(near, ids)
        torch.testing.assert_close(near_log_probs, log_probs, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("top_p", "kept"), [(0.39, {1}), (0.41, {1, 3}), (0.64, {1, 3}), (0.66, {1, 3, 4}), (0.94, {1, 3, 4, 5})]
)
def test_top_p_keeps_the_fewest_tokens_whose_mass_reaches_it(top_p: float, kept: set[int]) -> None:
    u = torch.arange(1000) / 1000
    ids, log_probs = draw_tokens(LOGITS.expand(1000, -1), u, top_p=top_p)
    assert set(ids.tolist()) == kept
    inside = PROBS[sorted(kept)]
    expected = (PROBS / inside.sum())[ids].log()
    torch.testing.assert_close(log_probs.double(), expected, rtol=0, atol=1e-6)


def test_the_nucleus_is_that_of_the_tempered_distribution() -> None:
    # At temperature 0.5 token 1 holds 0.6 of the mass, at temperature 1 only 0.4.
    ids, _ = draw_tokens(LOGITS.expand(100, -1), torch.arange(100) / 100, temperature=0.5, top_p=0.55)
    assert set(ids.tolist()) == {1}


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


@pytest.mark.parametrize(("top_k", "kept"), [(1, {1}), (2, {1, 3}), (4, {1, 3, 4, 5}), (6, {0, 1, 3, 4, 5})])
def test_top_k_keeps_that_many_tokens_in_their_proportions(top_k: int, kept: set[int]) -> None:
    u = (torch.arange(10_000, dtype=torch.float64) + 0.5) / 10_000
    ids, log_probs = draw_tokens(LOGITS.expand(10_000, -1), u, top_k=top_k)
    inside = PROBS[sorted(kept)]
    assert set(ids.tolist()) == kept
    torch.testing.assert_close(log_probs.double(), (PROBS / inside.sum())[ids].log(), rtol=0, atol=1e-6)
    share = ids.bincount(minlength=len(PROBS)).double() / 10_000
    torch.testing.assert_close(share[ids], log_probs.double().exp(), rtol=0, atol=2e-4)


def test_top_k_holds_at_ties_and_the_nucleus_is_taken_among_the_kept() -> None:
    u = torch.arange(1000) / 1000
    assert len(draw_tokens(torch.zeros(1000, 5), u, top_k=2)[0].unique()) == 2
    # Among tokens 1 and 3 alone the first holds 0.4 / 0.65 = 0.615 of the mass, of all of them only 0.4.
    assert set(draw_tokens(LOGITS.expand(1000, -1), u, top_k=2, top_p=0.6)[0].tolist()) == {1}
    assert set(draw_tokens(LOGITS.expand(1000, -1), u, top_p=0.6)[0].tolist()) == {1, 3}
