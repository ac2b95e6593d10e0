"""Which blocks a process sees, and from where on."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from fewstep.data import StepBatchSampler
from fewstep.errors import UserError
from fewstep.training import TextDataModule
from tests.runs import BATCH_SIZE, BLOCK_SIZE, DOCUMENTS, Workshop


def data_module(workshop: Workshop, rank: int = 0, world_size: int = 1, step: int = 0, **given: Any) -> TextDataModule:
    """A data module under a stand-in for the trainer, its tokenizer used before the trainer came, as stages do."""
    folder = workshop.folder
    fields = {"source": str(folder / "text.jsonl"), "cache_dir": str(folder / "cache"), "vocab_size": 300}
    fields |= {"block_size": BLOCK_SIZE, "batch_size": BATCH_SIZE, "max_documents": DOCUMENTS, **given}
    data = TextDataModule(**fields)
    assert data.tokenizer
    data.trainer = SimpleNamespace(
        global_rank=rank, world_size=world_size, global_step=step, max_steps=20, accumulate_grad_batches=2
    )
    return data


def first_batches(data: TextDataModule, count: int = 3) -> list[dict[str, torch.Tensor]]:
    return [batch for batch, _ in zip(data.train_dataloader(), range(count), strict=False)]


def blocks_of(batches: list[dict[str, torch.Tensor]]) -> set[tuple[int, ...]]:
    return {tuple(block) for batch in batches for block in batch["ids"].tolist()}


def test_a_resumed_loader_gives_the_rest_of_the_unbroken_one(workshop: Workshop) -> None:
    whole = data_module(workshop)
    rows = [batch["index"].tolist() for batch in whole.train_dataloader()]
    assert rows == list(StepBatchSampler(len(whole.corpus.train), BATCH_SIZE, 40, seed=0, batches_per_step=2))
    resumed = data_module(workshop, step=7)
    assert [batch["index"].tolist() for batch in resumed.train_dataloader()] == rows[14:]


def test_processes_read_different_documents_of_a_stream(workshop: Workshop) -> None:
    one, other = (first_batches(data_module(workshop, rank, 2, streaming=True)) for rank in (0, 1))
    assert not blocks_of(one) & blocks_of(other)
    assert blocks_of(one) | blocks_of(other) != blocks_of(first_batches(data_module(workshop, streaming=True)))


def test_a_stream_goes_on_where_its_state_says(workshop: Workshop) -> None:
    data = data_module(workshop, streaming=True)
    batches = first_batches(data, 8)
    data.trainer.global_step = 2  # four batches used, some more fetched
    state = data.state_dict()
    resumed = data_module(workshop, step=2, streaming=True)
    resumed.load_state_dict(state)
    for expected, found in zip(batches[4:], first_batches(resumed, 4), strict=True):
        assert torch.equal(expected["ids"], found["ids"])


def test_validation_blocks_are_shared_by_the_processes(workshop: Workshop) -> None:
    alone = [batch["index"].tolist() for batch in data_module(workshop, num_validation_blocks=18).val_dataloader()]
    assert [row for batch in alone for row in batch] == list(range(18))
    for world_size in (1, 2, 3, 7):
        counted: dict[int, list[int]] = {}
        for rank in range(world_size):
            part = data_module(workshop, rank, world_size, num_validation_blocks=18)
            batches = [batch["index"].tolist() for batch in part.val_dataloader()]
            assert len(batches) == -(-5 // world_size), "all have equally many, or they would wait for each other"
            for place, batch in enumerate(batches):
                weight = part.held_out_weight(place, len(batch))
                assert weight in (0, len(batch) * world_size)
                if weight:
                    counted[place * world_size + rank] = batch
        assert [counted[number] for number in sorted(counted)] == alone


@pytest.mark.parametrize("name", ["batch_size", "num_validation_blocks"])
def test_a_number_below_one_is_refused_by_name(workshop: Workshop, name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=name):
        TextDataModule(source=str(tmp_path), **{name: 0})
