"""The tokenizer: trained alike each time, whole after a round trip, exact in its bytes."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fewstep.data import load_tokenizer, tokenizer_fingerprint, train_tokenizer
from fewstep.data.packing import BlockPacker
from fewstep.data.tokenizer import DocumentEncoder, EncodedDocument
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
def test_packing_in_pieces_is_packing_at_once_and_no_token_is_lost(lengths, block, pack, cut):
    documents = [EncodedDocument(np.full(n, 5, np.int32), np.full(n, 3, np.int32)) for n in lengths]
    once, pieces = BlockPacker(TOKENIZER, block, pack), BlockPacker(TOKENIZER, block, pack)
    whole = once.add(documents)
    parts = [pieces.add(documents[:cut]), pieces.add(documents[cut:])]
    assert np.array_equal(whole["input_ids"], np.concatenate([part["input_ids"] for part in parts]))
    assert np.array_equal(whole["num_bytes"], np.concatenate([part["num_bytes"] for part in parts]))
    assert once.report == pieces.report
    report = once.report
    assert report.tokens == sum(lengths) + len(lengths)
    assert report.blocks * block == report.tokens - report.dropped_tokens + report.padded_positions
    assert report.dropped_tokens < block
    assert whole["num_bytes"].sum() + once.rest_bytes.sum() == report.bytes == 3 * sum(lengths)
    assert (report.dropped_tokens == 0) or pack
    assert (report.padded_positions == 0) or not pack


def test_a_folder_without_a_tokenizer_and_an_empty_one_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"holds no tokenizer\.json"):
        load_tokenizer(tmp_path)
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    empty = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()), eos_token="<|endoftext|>")
    empty.save_pretrained(tmp_path / "empty")
    with pytest.raises(UserError, match="is empty"):
        load_tokenizer(tmp_path / "empty")
    with pytest.raises(UserError, match="is no folder"):
        load_tokenizer(tmp_path / "empty" / "tokenizer.json")
    (tmp_path / "empty" / "tokenizer.json").write_text("{")
    with pytest.raises(UserError, match="cannot be loaded"):
        load_tokenizer(tmp_path / "empty")
