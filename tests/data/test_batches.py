"""Laws of the batch order, and rows to tensors."""

from itertools import chain

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fewstep.data.batches import StepBatchSampler, collate
from fewstep.data.corpus import prepare_corpus
from fewstep.errors import UserError
from tests.data.texts import make_text, write_jsonl

sizes = st.tuples(st.integers(1, 5), st.integers(1, 4), st.integers(0, 30), st.integers(-3, 3))


@given(sizes, st.integers(0, 25))
@settings(max_examples=60, deadline=None)
def test_a_resumed_run_sees_exactly_the_rest(size, start):
    batch, world, spare, seed = size
    for rank in range(world):
        whole = list(StepBatchSampler(batch * world + spare, batch, 25, seed, rank, world))
        rest = StepBatchSampler(batch * world + spare, batch, 25, seed, rank, world, start=lambda: start)
        assert list(rest) == whole[start:]
        assert len(rest) == 25 == len(whole)


@given(sizes, st.integers(1, 3))
@settings(max_examples=60, deadline=None)
def test_processes_share_the_batches_that_one_would_accumulate(size, accumulated):
    batch, world, spare, seed = size
    count = batch * world * accumulated + spare
    parts = [
        StepBatchSampler(count, batch, 12 * accumulated, seed, rank, world, batches_per_step=accumulated)
        for rank in range(world)
    ]
    alone = StepBatchSampler(count, batch, 12 * accumulated * world, seed, batches_per_step=accumulated * world)
    assert list(chain(*zip(*parts, strict=True))) == list(alone)
    whole = StepBatchSampler(count, batch * world * accumulated, 12, seed)
    assert list(chain(*alone)) == list(chain(*whole)), "a step's examples depend on their number alone"
    assert all(len(set(step)) == batch * world * accumulated for step in whole)


@given(sizes)
@settings(max_examples=60, deadline=None)
def test_no_example_comes_twice_in_an_epoch_and_all_come_if_batches_divide_them(size):
    batch, _, spare, seed = size
    for count in (batch * 7, batch * 7 + min(spare, batch - 1)):
        sampler = StepBatchSampler(count, batch, 7 * 3, seed)
        batches = list(sampler)
        epochs = [sorted(chain(*batches[first : first + 7])) for first in (0, 7, 14)]
        for epoch in epochs:
            assert len(set(epoch)) == len(epoch) == 7 * batch
            assert set(epoch) <= set(range(count))
    assert sampler.batches_per_epoch == 7


def test_epochs_and_seeds_are_shuffled_differently():
    orders = [list(chain(*StepBatchSampler(64, 8, 16, seed))) for seed in (0, 1, -1)]
    assert orders[0][:64] != orders[0][64:]
    assert len({tuple(order) for order in orders}) == 3
    assert orders[0][:64] != sorted(orders[0][:64])


def test_too_few_examples_are_named():
    with pytest.raises(UserError, match=r"has 7 examples, fewer than one batch of 8 \(4 x 2"):
        StepBatchSampler(7, 4, 10, 0, rank=1, world_size=2)
    with pytest.raises(UserError, match=r"fewer than one batch of 12 \(4 x 1 processes x 3 accumulated batches\)"):
        StepBatchSampler(7, 4, 10, 0, batches_per_step=3)


def test_a_model_sees_what_counts_and_rows_carry_their_number(tmp_path, make_settings):
    texts = [make_text(seed, words=5 + seed) for seed in range(20)]
    corpus = prepare_corpus(make_settings(write_jsonl(tmp_path / "a.jsonl", texts), blocks="documents"))
    sampler = StepBatchSampler(len(corpus.train), 6, 4, seed=3)
    loader = torch.utils.data.DataLoader(corpus.train, batch_sampler=sampler, collate_fn=collate)
    for rows, batch in zip(sampler, loader, strict=True):
        assert batch["index"].tolist() == rows
        assert (batch["ids"].dtype, batch["mask"].dtype) == (torch.int64, torch.bool)
        counted = torch.arange(batch["ids"].shape[1]) < batch["length"][:, None]
        assert torch.equal(batch["mask"], counted) and not bool(counted.all())
        for name, column in (("ids", "input_ids"), ("length", "length"), ("num_bytes", "num_bytes")):
            assert np.array_equal(batch[name], corpus.train[rows][column])
