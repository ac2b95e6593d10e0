"""Metrics against closed forms and a second, plain way of counting."""

import math
from collections import Counter

import numpy as np
import pytest
import torch

from fewstep.metrics import (
    bootstrap_interval,
    distinct_n,
    pooled_entropy_nats,
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
    assert pooled_entropy_nats(ids, mask) == pytest.approx(
        plain_entropy([token for row in rows for token in row]), rel=1e-12
    )


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

    def ratio(rows: torch.Tensor) -> torch.Tensor:
        return rows[:, 1].sum() / rows[:, 0].sum()

    interval = bootstrap_interval(values, ratio, 50, torch.Generator().manual_seed(0))
    assert (interval.low, interval.high) == pytest.approx((10.0, 10.0))


@pytest.mark.parametrize(
    "call",
    [
        lambda: unigram_entropy_nats(torch.zeros(0, 4, dtype=torch.long)),
        lambda: pooled_entropy_nats(torch.zeros(0, 4, dtype=torch.long)),
        lambda: distinct_n(torch.zeros(2, 1, dtype=torch.long), 2),
        lambda: distinct_n(torch.zeros(2, 3, dtype=torch.long), 0),
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
