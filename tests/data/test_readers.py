"""One reader for each kind of file: the same documents from all of them, and bad files named with the place."""

import csv
import gzip
import json
from itertools import islice

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fewstep.data.corpus import prepare_corpus
from fewstep.data.readers import read_file
from fewstep.errors import UserError
from tests.data.texts import make_text, write_jsonl

TEXTS = [make_text(seed, words=20 + seed) + ('\n"quoted", and more' if seed % 3 == 0 else "") for seed in range(40)]


def texts_of(path, field):
    return [document["text"] for document in read_file(str(path), field)]


def write_kind(folder, kind):
    path = folder / f"a{kind}"
    if kind == ".txt":
        half = len(TEXTS) // 2
        parts = "<|endoftext|>\n".join(TEXTS[:half]), "\r\n<|endoftext|>".join(TEXTS[half:])
        path.write_text("\f".join(parts), encoding="utf-8")
    elif kind == ".json":
        path.write_text(json.dumps([{"text": text} for text in TEXTS], indent=1))
    elif kind in (".csv", ".tsv"):
        with path.open("w", newline="", encoding="utf-8") as file:
            rows = [["id", "text"], *enumerate(TEXTS)]
            csv.writer(file, delimiter="," if kind == ".csv" else "\t").writerows(rows)
    elif kind == ".parquet":
        pq.write_table(pa.table({"text": TEXTS, "id": range(len(TEXTS))}), path, row_group_size=7)
    elif kind == "folder":
        path.mkdir()
        for number, text in enumerate(TEXTS):
            (path / f"{number:02}.txt").write_text(text, encoding="utf-8")
    else:
        with pa.output_stream(path, compression="detect") as stream:
            stream.write(write_jsonl(folder / "b.jsonl", TEXTS).read_bytes())
    return path


@pytest.mark.parametrize("kind", [".txt", ".json", ".csv", ".tsv", ".parquet", ".jsonl.gz", ".jsonl.zst", "folder"])
def test_every_kind_of_file_gives_the_same_blocks_prepared_and_the_same_validation_split_streamed(
    kind, tmp_path, make_settings
):
    expected = prepare_corpus(make_settings(write_jsonl(tmp_path / "expected.jsonl", TEXTS)))
    path = write_kind(tmp_path, kind)
    corpus = prepare_corpus(make_settings(path))
    streamed = prepare_corpus(make_settings(path, streaming=True))
    assert np.array_equal(corpus.train[:]["input_ids"], expected.train[:]["input_ids"])
    assert np.array_equal(streamed.validation[:]["input_ids"], expected.validation[:]["input_ids"])
    for row, block in zip(corpus.train, streamed.train, strict=False):
        assert np.array_equal(row["input_ids"], block["input_ids"])


@pytest.mark.parametrize("streaming", [False, True])
def test_only_the_text_column_is_looked_at(tmp_path, make_settings, streaming):
    """Columns come, go and change their type within a file and from file to file."""
    folder = tmp_path / "folder"
    folder.mkdir()
    others = [{}, {"id": 1}, {"id": "one"}, {"id": {"deep": [1]}, "more": None}, {"tools": [{"a": 1}, "b"]}]
    for number in range(2):
        lines = (json.dumps({"text": make_text(50 * number + seed), **others[seed % 5]}) for seed in range(50))
        (folder / f"{number}.jsonl").write_text("\n".join(lines))
    write_kind(folder, ".csv")
    settings = make_settings(folder, streaming=streaming)
    corpus = prepare_corpus(settings)
    if streaming:
        assert len(list(islice(corpus.train, 1000))) == 1000
    else:
        assert corpus.report.train.documents == 133


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_the_field_may_be_a_path_into_nested_records(tmp_path, suffix):
    records = [{"meta": {"body": "one", "n": 1}}, {"meta": {"body": None, "n": 2}}, {"meta": None}]
    path = tmp_path / f"a{suffix}"
    if suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(records), path)
    else:
        path.write_text("\n".join(map(json.dumps, records)))
    assert texts_of(path, "meta.body") == ["one", "", ""]
    with pytest.raises(UserError, match=r"has no field 'meta.text'.*\(body, n\)"):
        texts_of(path, "meta.text")
    (tmp_path / "dot.jsonl").write_text('{"meta.body": "the name itself"}')
    assert texts_of(tmp_path / "dot.jsonl", "meta.body") == ["the name itself"]


def test_lone_surrogates_are_replaced_and_counted(tmp_path, make_settings):
    path = tmp_path / "a.jsonl"
    lines = [json.dumps({"text": text}) for text in TEXTS]
    lines[3] = '{"text": "a \\ud800 b \\ud83d\\ude00 c \\udfff"}'
    path.write_text("\n".join(lines))
    assert texts_of(path, "text")[3] == "a \ufffd b \U0001f600 c \ufffd"
    corpus = prepare_corpus(make_settings(path))
    assert "2 characters are U+FFFD" in str(corpus.report)
    assert "\ud83d" not in corpus.tokenizer.decode(np.concatenate(corpus.train[:]["input_ids"]))


def test_skipped_files_of_a_folder_are_named_and_counted(tmp_path, make_settings):
    path = write_kind(tmp_path, "folder")
    (path / "notes.md").write_text("not text")
    (path / "empty.txt").write_text("")
    (path / ".hidden.txt").write_text("hidden")
    report = str(prepare_corpus(make_settings(path)).report)
    assert "skipped 2 files that are empty or of another kind: empty.txt, notes.md" in report


def test_a_mark_at_the_beginning_is_no_text_and_half_a_separator_is(tmp_path):
    text = "é漢" * 600_000 + "<|endo"
    path, lines = tmp_path / "a.txt", tmp_path / "a.jsonl"
    path.write_text("\ufeff" + text + "<|endoftext|>second", encoding="utf-8")
    assert texts_of(path, "") == [text, "second"]
    lines.write_text("\ufeff" + json.dumps({"text": text}, ensure_ascii=False) + "\n", encoding="utf-8")
    assert texts_of(lines, "text") == [text]


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("empty.txt", b"", "empty.txt is empty"),
        ("blank.txt", b" \n\n \f\n", "no documents with text: 2 read"),
        ("binary.txt", b"abc\0def", "binary.txt line 1 looks binary"),
        ("latin.txt", "ab caf\xe9 c".encode("latin-1"), "latin.txt line 1 is not UTF-8 (byte 0xe9)"),
        ("cut.txt", "ab 漢".encode()[:-1], "not UTF-8 (byte 0xe6)"),
        ("far.txt", b"a\n" * 70_000 + "é".encode() + b"\xff", "line 70001 is not UTF-8 (byte 0xff)"),
        ("far0.txt", b"a\n" * 70_000 + b"\0", "line 70001 looks binary"),
        ("a.jsonl", b'{"text": "x"}\n\n{"text": \n', "a.jsonl line 3 is not JSON"),
        ("b.jsonl", b'{"text": "x"}\n{"body": "y", "id": 1}\n', "set text_field to one of these (body, id)"),
        ("c.jsonl", b"[1]\n", "record 1 is a JSON int"),
        ("d.jsonl", b'{"text": 7}', "line 1: field 'text' is int"),
        ("e.jsonl", b'{"text": "x"}\n{"text": "\xe9"}', "e.jsonl line 2 is not UTF-8 (byte 0xe9)"),
        ("e.parquet", b"PAR1 no", "e.parquet cannot be read as .parquet"),
        ("f.csv", b"a,b\n1,2", "row 1 has no field 'text': set text_field to one of these (a, b)"),
        ("ragged.csv", b"a,b\n1,2,3", "row 1 has no field 'text': set text_field to one of these (a, b, None)"),
        ("g.txt", b"a few words only", "fewer than one block of 32"),
        ("h.txt.gz", gzip.compress(b"some text " * 1000, mtime=0)[:-20], "h.txt.gz cannot be read as .txt"),
        ("i.json", b'[{"text": "x"}, {}]', "record 2 has no field 'text'"),
        ("j.json", b'[{"text": "x"}', "j.json is not JSON"),
        ("k.docx", b"PK", "extension '.docx': expected .txt, .jsonl, .json, .csv, .tsv, .parquet, also compressed"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("streaming", [False, True])
def test_a_bad_file_is_named_with_the_place(name, content, expected, streaming, tmp_path, make_settings):
    (tmp_path / name).write_bytes(content)
    settings = make_settings(tmp_path / name, streaming=streaming)
    with pytest.raises(UserError) as caught:
        prepare_corpus(settings)
    assert expected in str(caught.value) or (name == "g.txt" and streaming)
    assert "\n" not in str(caught.value)


def test_parquet_columns_are_named(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"body": pa.array(["x", "y"]).dictionary_encode(), "year": [1, 2]}), path)
    assert texts_of(path, "body") == ["x", "y"]
    for field, message in (("text", r"one of these \(body, year\)"), ("year", "row 1: field 'year' is int")):
        with pytest.raises(UserError, match=message):
            texts_of(path, field)


def test_missing_paths_and_folders_without_text(tmp_path, make_settings):
    folder = tmp_path / "folder"
    folder.mkdir()
    for source, expected in (
        (tmp_path / "nowhere", "does not exist"),
        ("nowhere.txt", "does not exist"),
        (folder, "holds no file"),
    ):
        with pytest.raises(UserError, match=expected):
            prepare_corpus(make_settings(source))
    (folder / "x.md").write_text("x")
    with pytest.raises(UserError, match=r"of another kind \(x.md\): give a folder with such files"):
        prepare_corpus(make_settings(folder))
    with pytest.raises(UserError, match="cannot be written"):
        prepare_corpus(make_settings("sotu", cache_dir=str(folder / "x.md")))
