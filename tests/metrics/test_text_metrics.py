"""Metrics against closed forms and a second, plain way of counting."""

import math
import sys
from collections import Counter
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor

from fewstep.metrics.intervals import Interval, bootstrap_interval
from fewstep.metrics.text import (
    distinct_n,
    match_lengths,
    mauve_score,
    memorised_share,
    repeated_ngrams,
    sample_entropies_nats,
)

Tokens = tuple[Tensor, Tensor | None]


@pytest.fixture(params=[False, True], ids=["whole", "masked"])
def samples(request: pytest.FixtureRequest) -> Tokens:
    """Tokens (9, 20) of a small vocabulary, with and without a mask."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(7, (9, 20), generator=generator)
    mask = torch.arange(20) < torch.randint(3, 21, (9, 1), generator=generator)
    return ids, mask if request.param else None


def rows_of(ids: Tensor, mask: Tensor | None) -> list[list[int]]:
    return [row[seen].tolist() for row, seen in zip(ids, ids > -1 if mask is None else mask, strict=True)]


def grams_of(rows: list[list[int]], n: int) -> list[list[tuple[int, ...]]]:
    return [[tuple(row[i : i + n]) for i in range(len(row) - n + 1)] for row in rows]


def test_entropies_equal_a_plain_count(samples: Tokens) -> None:
    shares = [np.array(list(Counter(row).values())) / len(row) for row in rows_of(*samples)]
    each = [-(share * np.log(share)).sum() for share in shares]
    np.testing.assert_allclose(sample_entropies_nats(*samples).numpy(), each, rtol=1e-12)


def test_entropy_is_zero_for_one_word_and_ln_of_length_for_all_different() -> None:
    ids = torch.stack([torch.full((32,), 5), torch.arange(32)])
    assert sample_entropies_nats(ids).tolist() == pytest.approx([0.0, math.log(32)])
    assert sample_entropies_nats(ids, torch.zeros(2, 32, dtype=torch.bool)).tolist() == [0.0, 0.0]


@pytest.mark.parametrize("n", [1, 2, 4])
def test_ngrams_are_counted_as_plainly_and_do_not_cross_samples(samples: Tokens, n: int) -> None:
    ids, mask = samples
    grams = grams_of(rows_of(ids, mask), n)
    every = [gram for row in grams for gram in row]
    assert distinct_n(ids, n, mask) == pytest.approx(len(set(every)) / len(every))
    repeated = [1 - len(set(row)) / len(row) for row in grams if row]
    assert repeated_ngrams(ids, n, mask) == pytest.approx(sum(repeated) / len(repeated))


def test_a_word_over_and_over_repeats_and_a_count_does_not() -> None:
    assert repeated_ngrams(torch.full((2, 13), 5)) == pytest.approx(0.9)
    assert repeated_ngrams(torch.arange(26).reshape(2, 13)) == 0.0
    assert repeated_ngrams(torch.arange(13).repeat(3, 1)) == 0.0, "equal samples repeat each other, not themselves"


def test_the_bootstrap_interval_covers_the_truth_as_often_as_it_says() -> None:
    generator = torch.Generator().manual_seed(1)
    trials, covered, widths = 200, 0, []
    for _ in range(trials):
        values = 3 + 2 * torch.randn(40, generator=generator)
        interval = bootstrap_interval(values, lambda rows: rows.mean(-1), 200, generator)
        covered += interval.low <= 3 <= interval.high
        widths.append(interval.high - interval.low)
    assert 0.88 <= covered / trials <= 0.985  # 95 %, less what a percentile interval of 40 values gives away
    assert np.mean(widths) == pytest.approx(2 * 1.96 * 2 / math.sqrt(40), rel=0.08)


def test_the_bootstrap_draws_whole_rows() -> None:
    values = torch.tensor([[1.0, 10.0], [2.0, 20.0], [3.0, 30.0]])
    interval = bootstrap_interval(
        values, lambda rows: rows[..., 1].sum(-1) / rows[..., 0].sum(-1), 50, torch.Generator()
    )
    assert (interval.low, interval.high) == pytest.approx((10.0, 10.0))


def test_resamples_that_do_not_fit_at_once_give_the_same_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    values = torch.rand(30, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(1))

    def interval() -> Interval:
        return bootstrap_interval(
            values, lambda rows: rows.flatten(1).median(1).values, 500, torch.Generator().manual_seed(0)
        )

    whole = interval()
    monkeypatch.setattr("fewstep.metrics.intervals._NUMBERS_AT_ONCE", 3 * values.numel())
    assert interval() == whole


def test_of_an_empty_train_text_nothing_is_copied() -> None:
    assert not match_lengths(torch.zeros(0), torch.zeros(2, 5, dtype=torch.long), max_length=4).any()


def test_samples_that_are_too_short_for_an_ngram_are_undetermined() -> None:
    ids = torch.zeros(3, 5, dtype=torch.long)
    assert distinct_n(ids, 6) is repeated_ngrams(ids, 6) is memorised_share(ids, 6) is None
    nothing = torch.zeros(3, 5, dtype=torch.bool)
    assert distinct_n(ids, 2, nothing) is repeated_ngrams(ids, 2, nothing) is memorised_share(ids, 2, nothing) is None


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


def test_the_memorised_share_is_the_share_of_ngrams_that_the_text_holds(samples: Tokens) -> None:
    stream = torch.randint(7, (200,), generator=torch.Generator().manual_seed(9))
    (text,) = grams_of([stream.tolist()], 3)
    grams = [gram for row in grams_of(rows_of(*samples), 3) for gram in row]
    expected = sum(gram in set(text) for gram in grams) / len(grams)
    assert 0 < expected < 1
    lengths = match_lengths(stream, *samples, max_length=10)
    assert memorised_share(lengths, 3, samples[1]) == pytest.approx(expected, rel=1e-12)
    assert memorised_share(match_lengths(stream, stream[None, 20:60], max_length=8), 8) == 1.0


def test_mauve_gets_the_features_the_seed_and_the_scaling(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = {}

    def compute_mauve(p_features, q_features, **settings):
        seen.update(settings, samples=p_features, real=q_features)
        return SimpleNamespace(mauve=0.25)

    package = ModuleType("mauve")
    package.compute_mauve = compute_mauve
    monkeypatch.setitem(sys.modules, "mauve", package)
    assert mauve_score(torch.zeros(4, 3).double(), torch.ones(2, 3)) == 0.25
    assert seen["samples"].shape == (2, 3) and seen["real"].shape == (4, 3)
    assert (seen["seed"], seen["mauve_scaling_factor"]) == (25, 5.0)
