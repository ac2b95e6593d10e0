"""Texts beside samples are what they claim to be, and only tokens that count are scored."""

import pytest
import torch
from datasets import Dataset

from fewstep.errors import UserError
from fewstep.evaluation.baselines import (
    held_out_blocks,
    shuffle_words,
    shuffled_blocks,
    token_counts,
    train_stream,
    unigram_blocks,
)
from fewstep.evaluation.scorers import RunScorer
from fewstep.metrics.text import longest_copies, match_lengths
from fewstep.pipeline import decode_blocks
from fewstep.readouts import tokens_to_first_end
from tests.bundles import BLOCK_SIZE, tiny_bundle, tokenizer
from tests.evaluation.subjects import real_blocks


def test_tokens_that_do_not_count_change_no_score() -> None:
    real = real_blocks()
    mask = torch.arange(BLOCK_SIZE) < torch.randint(1, BLOCK_SIZE, (len(real.ids), 1))
    changed = torch.where(mask, real.ids, 7)
    scorer = RunScorer(tiny_bundle().scorer(), tokenizer())
    ours, theirs = (scorer.score([], ids, mask) for ids in (real.ids, changed))
    torch.testing.assert_close(ours.nats, theirs.nats)
    assert torch.equal(ours.tokens, mask.sum(-1).double())


def test_shuffling_keeps_the_words_and_the_white_space(generator: torch.Generator) -> None:
    documents = ["the old ship\n\nsailed past", "", " nobody knew "]
    shuffled = shuffle_words(documents, generator)
    assert sorted(" ".join(shuffled).split()) == sorted(" ".join(documents).split())
    assert shuffled != documents
    assert [text.count("\n\n") for text in shuffled] == [1, 0, 0]
    assert [len(text.split()) for text in shuffled] == [5, 0, 2]


def test_shuffled_blocks_keep_the_words_of_each_block_but_what_no_longer_fits(generator: torch.Generator) -> None:
    real = real_blocks(16)
    shuffled = shuffled_blocks(real, tokenizer(), generator)
    assert shuffled.ids.shape == real.ids.shape
    compared = 0
    for block, ours, seen in zip(real.ids, shuffled.ids, shuffled.mask, strict=True):
        before, after = (decode_blocks(tokenizer(), row[None])[0].split() for row in (block, ours[seen]))
        if len(after) and not seen.all():  # nothing was cut off
            assert sorted(before) == sorted(after)
            compared += 1
        assert not (set(after[:-1]) - set(before))
    assert not torch.equal(shuffled.ids, real.ids)
    assert compared


def test_unigram_draws_follow_the_counts(generator: torch.Generator) -> None:
    counts = torch.tensor([0.0, 1.0, 3.0, 0.0, 6.0, 0.0])
    drawn = unigram_blocks(counts, 500, 40, generator).ids
    shares = torch.bincount(drawn.flatten(), minlength=6) / drawn.numel()
    torch.testing.assert_close(shares, counts / 10, atol=0.012, rtol=0)
    assert bool((shares[counts == 0] == 0).all())


def test_held_out_blocks_are_spread_and_counts_leave_padding_out() -> None:
    rows = [{"index": i, "input_ids": [i, 1, 0, 0], "length": 2 + i % 2, "num_bytes": i} for i in range(10)]
    split = Dataset.from_list(rows).with_format("numpy")
    tokens, num_bytes = held_out_blocks(split, 5)
    assert tokens.ids[:, 0].tolist() == [0, 2, 4, 6, 8]
    assert num_bytes == 20
    assert tokens.mask.sum(-1).tolist() == [2] * 5
    assert token_counts(split, 12).tolist() == [1 + 5, 1 + 10, *[1] * 8, 0, 0]
    with pytest.raises(UserError, match="11 held-out blocks asked for, the validation split has 10"):
        held_out_blocks(split, 11)


def test_an_unpacked_block_counts_to_its_first_end_of_text() -> None:
    ids = torch.tensor([[5, 0, 0, 6], [5, 6, 7, 8], [0, 5, 0, 0]])
    expected = [[True, True, False, False], [True] * 4, [True, False, False, False]]
    assert tokens_to_first_end(ids, 0).tolist() == expected


def test_the_stream_joins_full_blocks_and_leaves_padding_out() -> None:
    blocks, lengths = [[1, 2, 3, 4], [5, 6, 0, 9], [7, 8, 0, 9]], [4, 3, 3]
    rows = [{"input_ids": ids, "length": length} for ids, length in zip(blocks, lengths, strict=True)]
    split = Dataset.from_list(rows).with_format("numpy")
    stream = train_stream(split)
    assert stream.dtype == torch.int64
    assert stream.tolist() == [1, 2, 3, 4, 5, 6, 0, 7, 8, 0]
    copied = longest_copies(match_lengths(stream, torch.tensor([[9, 2, 3, 4, 5, 6]]), max_length=8))
    assert copied.tolist() == [5], "a copy goes on from one full block to the next"
    assert train_stream(split.select([])).tolist() == []
