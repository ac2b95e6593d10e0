"""The train text as one stream."""

import torch
from datasets import Dataset

from fewstep.evaluation.train_text import train_stream
from fewstep.metrics.text import longest_copies, match_lengths


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
