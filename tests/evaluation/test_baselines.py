"""Texts beside samples are what they claim to be."""

import pytest
import torch
from datasets import Dataset

from fewstep.errors import UserError
from fewstep.evaluation.baselines import held_out_blocks, shuffle_words, shuffled_blocks, train_stream, unigram_blocks
from fewstep.metrics.text import match_lengths
from fewstep.pipeline import decode_blocks
from tests.bundles import tokenizer
from tests.evaluation.subjects import real_blocks


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
    compared = 0
    for block, ours, seen in zip(real.ids, shuffled.ids, shuffled.mask, strict=True):
        before, after = (decode_blocks(tokenizer(), row[None])[0].split() for row in (block, ours[seen]))
        if len(after) and not seen.all():  # nothing was cut off
            assert sorted(before) == sorted(after)
            compared += 1
        assert not (set(after[:-1]) - set(before))
    assert compared and not torch.equal(shuffled.ids, real.ids)


def test_unigram_draws_are_as_frequent_as_in_the_train_text(generator: torch.Generator) -> None:
    counts = torch.tensor([0, 1, 3, 0, 6])
    drawn = unigram_blocks(torch.arange(5).repeat_interleave(counts), 500, 40, generator).ids
    shares = torch.bincount(drawn.flatten(), minlength=5) / drawn.numel()
    torch.testing.assert_close(shares, counts / 10, atol=0.012, rtol=0)
    assert bool((shares[counts == 0] == 0).all())


def test_held_out_blocks_are_spread_and_their_padding_does_not_count() -> None:
    rows = [{"index": i, "input_ids": [i, 1, 0, 0], "length": 2 + i % 2, "num_bytes": i} for i in range(10)]
    split = Dataset.from_list(rows).with_format("numpy")
    tokens = held_out_blocks(split, 5)
    assert tokens.ids[:, 0].tolist() == [0, 2, 4, 6, 8]
    assert tokens.mask.sum(-1).tolist() == [2] * 5
    with pytest.raises(UserError, match="11 held-out blocks asked for, the validation split has 10"):
        held_out_blocks(split, 11)


def test_the_stream_joins_full_blocks_and_leaves_padding_out() -> None:
    blocks, lengths = [[1, 2, 3, 4], [5, 6, 0, 9], [7, 8, 0, 9]], [4, 3, 3]
    rows = [{"input_ids": ids, "length": length} for ids, length in zip(blocks, lengths, strict=True)]
    split = Dataset.from_list(rows).with_format("numpy")
    stream = train_stream(split)
    assert stream.dtype == torch.int64
    assert stream.tolist() == [1, 2, 3, 4, 5, 6, 0, 7, 8, 0]
    copied = match_lengths(stream, torch.tensor([[9, 2, 3, 4, 5, 6]]), max_length=8)
    assert copied.max() == 5, "a copy goes on from one full block to the next"
    assert train_stream(split.select([])).tolist() == []
