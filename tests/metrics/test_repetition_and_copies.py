"""Repetition and copies against a plain way of counting."""

import math
import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch
from torch import Tensor

from fewstep.errors import UserError
from fewstep.metrics import (
    CopyIndex,
    longest_copies,
    mauve_score,
    memorised_share,
    repeated_ngrams,
    repetition_shares,
)


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
        found = CopyIndex(stream, max_length).match_lengths(ids, mask)
        assert torch.equal(found, plain_lengths(stream, ids, mask, max_length))


def test_a_copy_is_found_whole_and_not_over_a_border_a_gap_or_the_samples_end() -> None:
    stream = torch.tensor([1, 2, 3, 4, 5, -1, 6, 7, 8])
    index = CopyIndex(stream, 16)
    ids = torch.tensor([[9, 2, 3, 4, 5, 6, 7, 8, 9], [1, 2, 3, 4, 5, -1, 6, 7, 8], [5, 6, 1, 2, 3, 7, 8, 1, 2]])
    assert longest_copies(index.match_lengths(ids)).tolist() == [4, 5, 3]
    mask = torch.ones_like(ids, dtype=torch.bool)
    mask[0, 3] = False
    assert longest_copies(index.match_lengths(ids, mask)).tolist() == [3, 5, 3]
    assert longest_copies(index.match_lengths(ids.reshape(1, -1)[:, 8:15])).tolist() == [5]


def test_many_samples_are_searched_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    index = CopyIndex(torch.randint(4, (200,), generator=generator), 9)
    ids = torch.randint(4, (30, 9), generator=generator)
    whole = index.match_lengths(ids)
    monkeypatch.setattr("fewstep.metrics.copies.POSITIONS_AT_ONCE", 20)
    assert torch.equal(index.match_lengths(ids), whole)
    assert index.match_lengths(ids[:0]).shape == (0, 9)


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
    lengths = CopyIndex(stream, 10).match_lengths(ids, mask)
    assert memorised_share(lengths, 4, mask) == pytest.approx(expected, rel=1e-12)
    assert memorised_share(CopyIndex(stream, 8).match_lengths(stream[None, 20:60]), 8) == 1.0


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


@pytest.mark.parametrize(
    "call",
    [
        lambda: CopyIndex(torch.zeros(0, dtype=torch.long), 4),
        lambda: CopyIndex(torch.zeros(2, 2, dtype=torch.long), 4),
        lambda: CopyIndex(torch.zeros(4, dtype=torch.long), 0),
        lambda: memorised_share(torch.zeros(3, 5, dtype=torch.long), 8),
        lambda: memorised_share(torch.zeros(3, 9, dtype=torch.long), 0),
        lambda: repeated_ngrams(torch.zeros(3, 3, dtype=torch.long)),
        lambda: repetition_shares(torch.zeros(3, 3, dtype=torch.long), 0),
        lambda: mauve_score(torch.zeros(3, 3), torch.zeros(3, 4)),
    ],
)
def test_nothing_to_measure_is_an_error(call) -> None:
    with pytest.raises(ValueError):
        call()


def test_without_its_package_mauve_is_one_line_that_tells_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mauve", None)
    with pytest.raises(UserError, match=r"pip install 'fewstep\[mauve\]'"):
        mauve_score(torch.zeros(3, 3), torch.zeros(4, 3))


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


def test_mauve_tells_equal_texts_from_other_ones(generator: torch.Generator) -> None:
    pytest.importorskip("mauve")
    real, same = torch.randn(2, 100, 4, generator=generator)
    other = 5 + 3 * torch.randn(100, 4, generator=generator)
    assert mauve_score(real, same) > 0.7 > 0.3 > mauve_score(real, other)
