"""The tokenizer: trained alike each time, whole after a round trip, exact in its bytes."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from fewstep.data.packing import BlockPacker
from fewstep.data.tokenizer import (
    DocumentEncoder,
    EncodedDocument,
    load_tokenizer,
    tokenizer_fingerprint,
    train_tokenizer,
    vocabulary_size,
)
from fewstep.errors import UserError
from tests.data.texts import make_text

TOKENIZER = train_tokenizer([make_text(seed) for seed in range(20)], 400)
ENCODER = DocumentEncoder(TOKENIZER)


def test_training_twice_gives_the_same_and_saving_keeps_it(tmp_path):
    texts = [make_text(seed) for seed in range(20)]
    again = train_tokenizer(iter(texts), 400)
    assert tokenizer_fingerprint(again) == tokenizer_fingerprint(TOKENIZER)
    again.save_pretrained(tmp_path)
    loaded = load_tokenizer(tmp_path)
    assert tokenizer_fingerprint(loaded) == tokenizer_fingerprint(TOKENIZER)
    loaded(["a", "a b c"], padding=True, truncation=True, max_length=2)
    assert tokenizer_fingerprint(loaded) == tokenizer_fingerprint(TOKENIZER), "mere use changed the fingerprint"
    assert loaded.eos_token == loaded.pad_token == "<|endoftext|>"
    assert loaded.eos_token_id == 0
    assert len(loaded) == len(TOKENIZER) > 300
    assert tokenizer_fingerprint(train_tokenizer(texts, 300)) != tokenizer_fingerprint(TOKENIZER)


@given(st.text(max_size=40))
@settings(max_examples=200, deadline=None)
def test_any_text_comes_back_and_its_bytes_add_up(text):
    (document,) = ENCODER.encode([text])
    assert TOKENIZER.decode(document.ids) == text
    assert document.num_bytes.sum() == len(text.encode())


def test_a_text_that_spells_a_special_token_gets_no_special_token():
    (document,) = ENCODER.encode(["ends with <|endoftext|> here"])
    assert TOKENIZER.eos_token_id not in document.ids
    assert document.num_bytes.sum() == len("ends with <|endoftext|> here")


@given(st.lists(st.integers(0, 9), max_size=12), st.integers(1, 6), st.booleans(), st.integers(0, 12))
@settings(max_examples=100, deadline=None)
def test_packing_in_pieces_is_packing_at_once_and_every_token_is_counted(lengths, block, alone, cut):
    documents = [EncodedDocument(np.full(n, 5, np.int32), np.full(n, 3, np.int32)) for n in lengths]
    once, pieces = (BlockPacker(TOKENIZER, block, one_document=alone) for _ in range(2))
    whole = once.add(documents)
    parts = [pieces.add(documents[:cut]), pieces.add(documents[cut:])]
    assert np.array_equal(whole["input_ids"], np.concatenate([part["input_ids"] for part in parts]))
    assert np.array_equal(whole["num_bytes"], np.concatenate([part["num_bytes"] for part in parts]))
    assert once.report == pieces.report
    report = once.report
    assert report.tokens == sum(lengths) + len(lengths)
    assert report.blocks * block == report.tokens - report.dropped_tokens + report.filled_positions
    assert report.bytes == 3 * sum(lengths)
    if alone:
        for row, length, size in zip(whole["input_ids"], whole["length"], lengths, strict=True):
            assert row.tolist() == [5] * min(size, block) + [TOKENIZER.eos_token_id] * (block - size)
            assert length == min(size + 1, block), "the first end-of-text counts"
        assert whole["num_bytes"].tolist() == [3 * min(size, block) for size in lengths]
        assert report.cut_documents == sum(size >= block for size in lengths)
    else:
        assert report.dropped_tokens < block
        assert report.filled_positions == report.cut_documents == 0
        assert whole["num_bytes"].sum() + once.rest_bytes.sum() == report.bytes


def test_a_folder_without_a_tokenizer_and_an_empty_one_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"holds no tokenizer\.json"):
        load_tokenizer(tmp_path)
    empty = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()), eos_token="<|endoftext|>")
    empty.save_pretrained(tmp_path / "empty")
    with pytest.raises(UserError, match="is empty"):
        load_tokenizer(tmp_path / "empty")
    with pytest.raises(UserError, match="is no folder"):
        load_tokenizer(tmp_path / "empty" / "tokenizer.json")
    (tmp_path / "empty" / "tokenizer.json").write_text("{")
    with pytest.raises(UserError, match="cannot be loaded"):
        load_tokenizer(tmp_path / "empty")


def test_berts_separator_ends_a_text_where_nothing_else_does(tmp_path):
    backend = Tokenizer(models.WordLevel({"[UNK]": 0, "[PAD]": 1, "[SEP]": 2, "ship": 3}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    special = {"unk_token": "[UNK]", "pad_token": "[PAD]", "sep_token": "[SEP]"}
    PreTrainedTokenizerFast(tokenizer_object=backend, **special).save_pretrained(tmp_path)
    loaded = load_tokenizer(tmp_path)
    assert (loaded.eos_token_id, loaded.pad_token_id, vocabulary_size(loaded)) == (2, 1, 4)
    loaded.save_pretrained(tmp_path / "again")
    assert load_tokenizer(tmp_path / "again").eos_token_id == 2
