"""Which blocks a process sees, and from where on."""

import json
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from fewstep.data.batches import StepBatchSampler
from fewstep.errors import UserError
from fewstep.training import TextDataModule
from fewstep.training.command import main
from tests.runs import BATCH_SIZE, Workshop, logged


def data_module(workshop: Workshop, rank: int = 0, world_size: int = 1, step: int = 0, **given: Any) -> TextDataModule:
    """A data module under a stand-in for the trainer, its tokenizer used before the trainer came, as stages do."""
    data = TextDataModule(**{**asdict(workshop.settings()), "batch_size": BATCH_SIZE, **given})
    assert data.corpus.tokenizer
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


@pytest.mark.parametrize(("known", "lossless"), [(40, True), (37, False)])
def test_bits_per_byte_are_logged_only_if_the_tokenizer_loses_nothing(
    workshop: Workshop, tmp_path: Path, known: int, lossless: bool
) -> None:
    """Its ids are spread, so that sizes taken from its length would be too small."""
    words = [f"w{number}" for number in range(40)]
    lines = (json.dumps({"text": " ".join(words[row:] + words[:row])}) + "\n" for row in range(40))
    (tmp_path / "text.jsonl").write_text("".join(lines))
    vocabulary = {token: 3 * number for number, token in enumerate(["[UNK]", "[END]", *words[:known]])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]", eos_token="[END]")
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    flags = [f"--data.source={tmp_path / 'text.jsonl'}", f"--data.tokenizer={tmp_path / 'tokenizer'}"]
    assert main(workshop.arguments("autoencoder", *flags, f"--run_dir={tmp_path / 'run'}", steps=1)) == 0
    scores = logged(tmp_path / "run")
    assert ("val/bits_per_byte" in scores) == lossless and "val/token_accuracy" in scores


def test_a_model_of_other_blocks_is_refused(workshop: Workshop) -> None:
    packed, alone = data_module(workshop), data_module(workshop, blocks="documents")
    alone.check_model(alone.new_model().identity, "model")
    assert alone.new_model().identity.blocks == "documents"
    with pytest.raises(UserError, match=r"blocks packed, not documents: pass --data\.blocks=packed"):
        alone.check_model(packed.new_model().identity, "model")
    batch = first_batches(alone, 1)[0]
    assert int(alone.units_in(batch)) == int(batch["length"].sum()) == int(batch["mask"].sum())


def test_models_know_the_lengths_of_their_training_text(workshop: Workshop) -> None:
    packed, alone = data_module(workshop), data_module(workshop, blocks="documents")
    lengths = [int(row["length"]) for row in alone.corpus.train]
    identity = alone.new_model().identity
    assert identity.length_counts == tuple(lengths.count(length) for length in range(1, alone.block_size + 1))
    assert len(lengths) == sum(identity.length_counts) and packed.new_model().identity.length_counts == ()
    with pytest.raises(UserError, match="writes the ends that fill a block, as models of pairs do"):
        alone.check_model(replace(identity, length_counts=()), "model")
