"""Metrics against closed forms and a second, plain way of counting."""

import math
import sys
from collections import Counter
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor

from fewstep.metrics.intervals import bootstrap_interval
from fewstep.metrics.text import (
    distinct_n,
    longest_copies,
    match_lengths,
    mauve_score,
    memorised_share,
    repeated_ngrams,
    repetition_shares,
    sample_entropies_nats,
    unigram_entropy_nats,
)


@pytest.fixture
def samples() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(7, (9, 20), generator=generator)
    mask = torch.arange(20) < torch.randint(3, 21, (9, 1), generator=generator)
    return ids, mask


def plain_entropy(tokens: list[int]) -> float:
    shares = np.array(list(Counter(tokens).values())) / len(tokens)
    return float(-(shares * np.log(shares)).sum())


def rows_of(ids: torch.Tensor, mask: torch.Tensor | None) -> list[list[int]]:
    if mask is None:
        return ids.tolist()
    return [row[seen].tolist() for row, seen in zip(ids, mask, strict=True)]


@pytest.mark.parametrize("masked", [False, True])
def test_entropies_equal_a_plain_count(samples: tuple[torch.Tensor, torch.Tensor], masked: bool) -> None:
    ids, mask = samples[0], samples[1] if masked else None
    rows = rows_of(ids, mask)
    each = np.array([plain_entropy(row) for row in rows])
    np.testing.assert_allclose(sample_entropies_nats(ids, mask).numpy(), each, rtol=1e-12)
    assert unigram_entropy_nats(ids, mask) == pytest.approx(each.mean(), rel=1e-12)


def test_entropy_is_zero_for_one_word_and_ln_of_length_for_all_different() -> None:
    ids = torch.stack([torch.full((32,), 5), torch.arange(32)])
    assert sample_entropies_nats(ids).tolist() == pytest.approx([0.0, math.log(32)])
    assert sample_entropies_nats(ids, torch.zeros(2, 32, dtype=torch.bool)).tolist() == [0.0, 0.0]


@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize("masked", [False, True])
def test_distinct_n_equals_a_plain_count_that_does_not_cross_samples(
    samples: tuple[torch.Tensor, torch.Tensor], n: int, masked: bool
) -> None:
    ids, mask = samples[0], samples[1] if masked else None
    grams = [tuple(row[i : i + n]) for row in rows_of(ids, mask) for i in range(len(row) - n + 1)]
    assert distinct_n(ids, n, mask) == pytest.approx(len(set(grams)) / len(grams))


def test_the_bootstrap_interval_covers_the_truth_as_often_as_it_says() -> None:
    generator = torch.Generator().manual_seed(1)
    trials, covered, widths = 200, 0, []
    for _ in range(trials):
        values = 3 + 2 * torch.randn(40, generator=generator)
        interval = bootstrap_interval(values, torch.mean, 200, generator)
        covered += interval.low <= 3 <= interval.high
        widths.append(interval.high - interval.low)
    assert 0.88 <= covered / trials <= 0.985  # 95 %, less what a percentile interval of 40 values gives away
    assert np.mean(widths) == pytest.approx(2 * 1.96 * 2 / math.sqrt(40), rel=0.08)


def test_the_bootstrap_draws_whole_rows() -> None:
    values = torch.tensor([[1.0, 10.0], [2.0, 20.0], [3.0, 30.0]])
    interval = bootstrap_interval(values, lambda rows: rows[:, 1].sum() / rows[:, 0].sum(), 50, torch.Generator())
    assert (interval.low, interval.high) == pytest.approx((10.0, 10.0))


@pytest.mark.parametrize(
    "call",
    [
        lambda: unigram_entropy_nats(torch.zeros(0, 4, dtype=torch.long)),
        lambda: distinct_n(torch.zeros(2, 1, dtype=torch.long), 2),
        lambda: distinct_n(torch.zeros(2, 3, dtype=torch.long), 0),
        lambda: match_lengths(torch.zeros(0), torch.zeros(1, 1), max_length=4),
        lambda: match_lengths(torch.zeros(2, 2), torch.zeros(1, 1), max_length=4),
        lambda: match_lengths(torch.zeros(4), torch.zeros(1, 1), max_length=0),
        lambda: memorised_share(torch.zeros(3, 5, dtype=torch.long), 8),
        lambda: memorised_share(torch.zeros(3, 9, dtype=torch.long), 0),
        lambda: repeated_ngrams(torch.zeros(3, 3, dtype=torch.long)),
        lambda: repetition_shares(torch.zeros(3, 3, dtype=torch.long), 0),
        lambda: mauve_score(torch.zeros(3, 3), torch.zeros(3, 4)),
        lambda: bootstrap_interval(torch.zeros(0), torch.mean, 10, torch.Generator()),
    ],
)
def test_nothing_to_measure_is_an_error_not_a_nan(call) -> None:
    with pytest.raises(ValueError):
        call()


def test_a_batched_statistic_gives_the_same_interval() -> None:
    values = torch.rand(300, 21, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    one = bootstrap_interval(values, torch.median, 500, torch.Generator().manual_seed(0))
    many = bootstrap_interval(
        values, lambda rows: rows.flatten(1).median(1).values, 500, torch.Generator().manual_seed(0), batched=True
    )
    assert (one.low, one.high) == (many.low, many.high), "500 resamples of 6300 numbers do not fit at once"


def plain_lengths(stream: Tensor, ids: Tensor, mask: Tensor, max_length: int) -> Tensor:
    """Every place of the text is tried for every token of the samples."""
    text = stream.tolist()

    def length(piece: list[int]) -> int:
        best = 0
        for place in range(len(text)):
            n = 0
            while n < min(len(piece), max_length, len(text) - place) and text[place + n] == piece[n]:
                n += 1
            best = max(best, n)
        return best

    pieces = [[row[i:] for i in range(len(row))] for row in torch.where(mask, ids, -2).tolist()]
    return torch.tensor([[length(piece) for piece in row] for row in pieces])


@pytest.mark.parametrize("max_length", [1, 3, 4, 8, 13])
def test_match_lengths_equal_trying_every_place(max_length: int) -> None:
    generator = torch.Generator().manual_seed(max_length)
    for trial in range(20):
        vocab, size, length = (int(torch.randint(1, top, (1,), generator=generator)) for top in (5, 60, 14))
        stream = torch.randint(-(trial % 2), vocab, (size,), generator=generator)  # half of them with borders
        ids = torch.randint(vocab + 1, (4, length), generator=generator)
        mask = torch.rand(4, length, generator=generator) < 0.9
        found = match_lengths(stream, ids, mask, max_length=max_length)
        assert torch.equal(found, plain_lengths(stream, ids, mask, max_length))


def test_a_copy_is_found_whole_and_not_over_a_border_a_gap_or_the_samples_end() -> None:
    stream = torch.tensor([1, 2, 3, 4, 5, -1, 6, 7, 8])
    ids = torch.tensor([[9, 2, 3, 4, 5, 6, 7, 8, 9], [1, 2, 3, 4, 5, -1, 6, 7, 8], [5, 6, 1, 2, 3, 7, 8, 1, 2]])
    assert longest_copies(match_lengths(stream, ids, max_length=16)).tolist() == [4, 5, 3]
    mask = torch.ones_like(ids, dtype=torch.bool)
    mask[0, 3] = False
    assert longest_copies(match_lengths(stream, ids, mask, max_length=16)).tolist() == [3, 5, 3]
    assert longest_copies(match_lengths(stream, ids.reshape(1, -1)[:, 8:15], max_length=16)).tolist() == [5]
    assert match_lengths(stream, ids[:0], max_length=9).shape == (0, 9)


def test_the_memorised_share_is_the_share_of_ngrams_that_the_text_holds() -> None:
    generator = torch.Generator().manual_seed(0)
    stream = torch.randint(3, (150,), generator=generator)
    ids = torch.randint(3, (12, 10), generator=generator)
    mask = torch.arange(10) < torch.randint(2, 11, (12, 1), generator=generator)
    text = {tuple(stream[i : i + 4].tolist()) for i in range(len(stream) - 3)}
    rows = [row[seen].tolist() for row, seen in zip(ids, mask, strict=True)]
    grams = [tuple(row[i : i + 4]) for row in rows for i in range(len(row) - 3)]
    expected = sum(gram in text for gram in grams) / len(grams)
    assert 0 < expected < 1
    lengths = match_lengths(stream, ids, mask, max_length=10)
    assert memorised_share(lengths, 4, mask) == pytest.approx(expected, rel=1e-12)
    assert memorised_share(match_lengths(stream, stream[None, 20:60], max_length=8), 8) == 1.0


@pytest.mark.parametrize("n", [1, 2, 4])
def test_repetition_shares_equal_a_plain_count_of_each_sample(n: int) -> None:
    generator = torch.Generator().manual_seed(n)
    ids = torch.randint(3, (15, 12), generator=generator)
    mask = torch.arange(12) < torch.randint(1, 13, (15, 1), generator=generator)
    shares = repetition_shares(ids, n, mask)
    for row, seen, share in zip(ids, mask, shares.tolist(), strict=True):
        tokens = row[seen].tolist()
        grams = [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]
        if grams:
            assert share == pytest.approx(1 - len(set(grams)) / len(grams))
        else:
            assert math.isnan(share)
    assert repeated_ngrams(ids, n, mask) == pytest.approx(float(shares[~shares.isnan()].mean()))


def test_a_word_over_and_over_repeats_and_a_count_does_not() -> None:
    assert repeated_ngrams(torch.full((2, 13), 5)) == pytest.approx(0.9)
    assert repeated_ngrams(torch.arange(26).reshape(2, 13)) == 0.0
    assert repeated_ngrams(torch.arange(13).repeat(3, 1)) == 0.0, "equal samples repeat each other, not themselves"


def test_mauve_gets_the_features_the_seed_and_the_scaling(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = {}

    def compute_mauve(p_features, q_features, **settings):
        seen.update(settings, samples=p_features, real=q_features)
        return SimpleNamespace(mauve=0.25)

    package = ModuleType("mauve")
    package.compute_mauve = compute_mauve
    monkeypatch.setitem(sys.modules, "mauve", package)
    assert mauve_score(torch.zeros(4, 3).double(), torch.ones(2, 3), seed=7) == 0.25
    assert seen["samples"].shape == (2, 3) and seen["real"].shape == (4, 3)
    assert (seen["seed"], seen["mauve_scaling_factor"]) == (7, 5.0)
