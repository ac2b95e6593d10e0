"""A streamed corpus: the same blocks each time, from any point on, shared among processes."""

import json
import pickle
from itertools import islice

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from fewstep.data.batches import collate
from fewstep.data.corpus import PreparedCorpus, prepare_corpus
from fewstep.data.tokenizer import tokenizer_fingerprint
from fewstep.errors import UserError
from tests.data.texts import make_text, write_jsonl

DOCUMENTS = 90


def write_source(folder, kind, files):
    texts = [make_text(seed % 80, words=5 + seed % 80) for seed in range(DOCUMENTS)]
    texts[40] = ""
    for number in range(files):
        if kind == "jsonl":
            write_jsonl(folder / f"{number}.jsonl", texts[number::files])
        else:
            pq.write_table(pa.table({"text": texts[number::files]}), folder / f"{number}.parquet", row_group_size=7)


@pytest.fixture
def open_corpus(tmp_path, make_settings):
    def make(kind="jsonl", files=1, rank=0, world_size=1, **changes) -> PreparedCorpus:
        folder = tmp_path / f"{kind}{files}"
        if not folder.exists():
            folder.mkdir()
            write_source(folder, kind, files)
        fields = {"streaming": True, "max_documents": DOCUMENTS, "validation_fraction": 0.1, "block_size": 16}
        return prepare_corpus(make_settings(folder, **(fields | changes)), rank, world_size)

    return make


def ids(rows):
    return [row["input_ids"].tolist() for row in rows]


def documents_in(rows, tokenizer):
    """Numbers of the documents that begin in these blocks."""
    text = tokenizer.decode(np.concatenate([row["input_ids"][: row["length"]] for row in rows]))
    pieces = text.split("<|endoftext|>")[:-1]
    return [int(piece.split()[1].rstrip(".")) for piece in pieces if piece.startswith("Document")]


@pytest.mark.parametrize("blocks", ["packed", "documents"])
@pytest.mark.parametrize(("kind", "files"), [("jsonl", 1), ("jsonl", 3), ("parquet", 2)])
def test_a_resumed_stream_goes_on_exactly(open_corpus, kind, files, blocks):
    whole = list(islice(open_corpus(kind, files, blocks=blocks).train, 700))
    assert [row["index"] for row in whole] == list(range(700))
    for used, ahead in ((0, 0), (1, 3), (37, 0), (150, 20), (390, 5), (560, 7)):
        stream = open_corpus(kind, files, blocks=blocks).train
        list(islice(stream, used + ahead))
        state = json.loads(json.dumps(pickle.loads(pickle.dumps(stream.state_dict(used)))))
        assert used - state["snapshot"]["blocks"] < 300, "a resume must not read from the beginning"
        resumed = open_corpus(kind, files, blocks=blocks).train
        resumed.load_state_dict(state)
        rest = list(islice(resumed, 60))
        assert ids(rest) == ids(whole[used : used + 60])
        assert [row["index"] for row in rest] == list(range(used, used + 60))
        second = open_corpus(kind, files, blocks=blocks).train
        second.load_state_dict(resumed.state_dict())
        assert ids(islice(second, 20)) == ids(whole[used + 60 : used + 80])


def test_every_train_document_comes_once_a_pass_and_none_of_validation(open_corpus):
    corpus = open_corpus(blocks="documents", block_size=512)
    numbers = documents_in(list(islice(corpus.train, 1200)), corpus.tokenizer)
    held_out = documents_in(list(corpus.validation), corpus.tokenizer)
    # Every tenth is held out; 40 is empty, and 80 to 89 are copies of 0 to 9.
    assert held_out == [9, 19, 29, 39, 50, 60, 70]
    one_pass = [number % 80 for number in range(90) if number != 40 and number % 80 not in held_out]
    assert numbers[: len(one_pass)] == one_pass
    assert numbers[len(one_pass) : 2 * len(one_pass)] == one_pass
    assert "7 of the first 90 documents are the validation split" in str(corpus.report)


def test_a_stream_of_long_documents_is_not_read_far_for_its_validation_split(open_corpus, monkeypatch):
    monkeypatch.setattr("fewstep.data.corpus.FIRST_CHARACTERS", 5000)
    assert "4 of the first 40 documents are the validation split" in str(open_corpus().report)


@pytest.mark.parametrize("count", [40, 1001])
def test_a_stream_holds_out_the_share_that_was_asked_for_of_what_is_there(tmp_path, make_settings, count):
    path = write_jsonl(tmp_path / "a.jsonl", [make_text(seed, words=9) for seed in range(count)])
    streamed = prepare_corpus(make_settings(path, streaming=True))
    prepared = prepare_corpus(make_settings(path))
    assert streamed.report.validation == prepared.report.validation
    assert streamed.report.validation.documents == count // 20
    assert tokenizer_fingerprint(streamed.tokenizer) == tokenizer_fingerprint(prepared.tokenizer)
    trained = documents_in(list(islice(streamed.train, prepared.report.train.blocks)), streamed.tokenizer)
    assert len(set(trained)) == len(trained) >= count - count // 20 - 1


def test_a_source_with_splits_of_its_own_is_streamed_without_its_validation_documents(make_settings, monkeypatch):
    monkeypatch.setattr("fewstep.data.corpus.FIRST_DOCUMENTS", 20)
    corpus = prepare_corpus(make_settings("tests.data.test_corpus.outside_splits", streaming=True))
    assert corpus.report.validation.documents == 5
    assert all(number % 4 for number in documents_in(list(islice(corpus.train, 300)), corpus.tokenizer))


@pytest.mark.parametrize(("files", "world_size"), [(1, 2), (4, 2), (3, 2)])
def test_ranks_share_the_documents(open_corpus, files, world_size):
    seen = []
    for rank in range(world_size):
        corpus = open_corpus(files=files, blocks="documents", block_size=512, rank=rank, world_size=world_size)
        numbers = documents_in(list(islice(corpus.train, 500)), corpus.tokenizer)
        seen.append(set(numbers))
    assert not (seen[0] & seen[1]) - set(range(10)), "only documents that stand twice in the source may come twice"
    held_out = set(documents_in(list(corpus.validation), corpus.tokenizer))
    copies = set(range(80)) - {40}
    assert seen[0] | seen[1] == copies - held_out


def test_a_state_of_another_rank_resumes_exactly_too(open_corpus):
    first, second = (open_corpus(rank=rank, world_size=2).train for rank in range(2))
    whole = ids(islice(second, 120))
    list(islice(first, 100))
    fresh = open_corpus(rank=1, world_size=2).train
    fresh.load_state_dict(first.state_dict())
    assert ids(islice(fresh, 20)) == whole[100:]


def test_a_loader_batches_the_stream(open_corpus):
    corpus = open_corpus(files=2, blocks="documents", block_size=512)
    batch = next(iter(torch.utils.data.DataLoader(corpus.train, batch_size=8, collate_fn=collate)))
    assert ids(islice(corpus.train, 8)) == batch["ids"].tolist()


def test_states_that_cannot_be_told_or_do_not_belong_are_refused(open_corpus):
    stream = open_corpus().train
    list(islice(stream, 5))
    with pytest.raises(UserError, match="after 6 blocks: this process yielded 5"):
        stream.state_dict(6)
    with pytest.raises(UserError, match="another source, tokenizer, block_size"):
        open_corpus(block_size=8).train.load_state_dict(stream.state_dict())


def test_one_document_cannot_be_streamed(tmp_path, make_settings):
    with pytest.raises(UserError, match="is one document, which cannot be streamed"):
        prepare_corpus(make_settings(write_jsonl(tmp_path / "a.jsonl", [make_text(1)]), streaming=True))


def test_streams_without_the_field_or_without_train_documents_are_refused(tmp_path, make_settings):
    path = write_jsonl(tmp_path / "a.jsonl", [make_text(seed) for seed in range(4)], field="body")
    settings = {"streaming": True, "max_documents": 4, "validation_fraction": 0.9}
    with pytest.raises(UserError, match=r"no field 'text'.*\(body, id\)"):
        prepare_corpus(make_settings(path, **settings))
    corpus = prepare_corpus(make_settings(path, text_field="body", **settings), rank=1, world_size=2)
    with pytest.raises(UserError, match="gives process 1 no train documents"):
        next(iter(corpus.train))
