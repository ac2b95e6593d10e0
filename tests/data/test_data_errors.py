"""Bad input is told in one line that names the value and what to do."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import fewstep.data
from fewstep.data import CorpusSettings, load_tokenizer, prepare_corpus, streaming_corpus
from fewstep.errors import UserError
from tests.data.texts import make_text


def message(settings) -> str:
    with pytest.raises(UserError) as caught:
        prepare_corpus(settings)
    text = str(caught.value)
    assert "\n" not in text
    return text


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("empty.txt", b"", "empty.txt is empty"),
        ("blank.txt", b" \n\n \f\n", "no documents with text: 2 read"),
        ("binary.txt", b"abc\0def", "looks binary (NUL byte at offset 3)"),
        ("latin.txt", "ab caf\xe9 c".encode("latin-1"), "not UTF-8 (byte 0xe9 at offset 6)"),
        ("cut.txt", "ab 漢".encode()[:-1], "not UTF-8 (byte 0xe6 at offset 3)"),
        ("far.txt", b"a" * 1_048_575 + "é".encode() + b"\xff", "offset 1048577"),
        ("far0.txt", b"a" * 2_000_000 + b"\0", "offset 2000000"),
        ("a.jsonl", b'{"text": "x"}\n\n{"text": \n', "a.jsonl line 3 is not JSON"),
        ("b.jsonl", b'{"text": "x"}\n{"body": "y", "id": 1}\n', "line 2 has no field 'text': set text_field to one"),
        ("c.jsonl", b"[1]\n", "line 1 is a JSON list"),
        ("d.jsonl", b'{"text": 7}', "line 1: field 'text' is int"),
        ("e.parquet", b"PAR1 no", "e.parquet is not a parquet file"),
        ("f.csv", b"a,b", "extension '.csv': expected one of .txt, .jsonl, .parquet"),
        ("g.txt", b"a few words only", "fewer than one block of 32"),
    ],
)  # fmt: skip
def test_a_bad_file_is_named_with_the_place(name, content, expected, tmp_path, make_settings):
    (tmp_path / name).write_bytes(content)
    assert expected in message(make_settings(tmp_path / name))


def test_characters_across_the_reading_pieces_are_whole(tmp_path):
    from fewstep.data.reading import read_jsonl, read_text

    text = "a" * 1_048_575 + "é漢" * 600_000 + "<|endo"
    path = tmp_path / "a.txt"
    path.write_text("\ufeff" + text + "<|endoftext|>second", encoding="utf-8")
    assert list(read_text(path, "")) == [text, "second"]
    path.write_text(json.dumps({"text": text}, ensure_ascii=False) + "\n", encoding="utf-8")
    assert list(read_jsonl(path, "text")) == [text]
    path.write_text("b" * (1_048_576 - 5) + "<|endoftext|>third", encoding="utf-8")
    assert list(read_text(path, "")) == ["b" * (1_048_576 - 5), "third"]


def test_missing_paths_and_folders_without_text(tmp_path, make_settings):
    assert "does not exist" in message(make_settings(tmp_path / "nowhere"))
    assert "does not exist" in message(make_settings("nowhere.txt"))
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "x.md").write_text("x")
    assert "holds no file of .txt, .jsonl, .parquet" in message(make_settings(tmp_path / "folder"))
    assert "cannot be written" in message(make_settings("sotu", cache_dir=str(tmp_path / "folder" / "x.md")))


def test_parquet_columns_are_told(tmp_path, make_settings):
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"body": ["x"], "year": [1]}), tmp_path / "a.parquet")
    assert "one of its fields (body, year)" in message(make_settings(tmp_path / "a.parquet"))
    assert "column 'year' is int64" in message(make_settings(tmp_path / "a.parquet", text_field="year"))


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("vocab_size", 256, "at least 257"),
        ("validation_fraction", 0.0, "between 0 and 1"),
        ("validation_fraction", 1.0, "between 0 and 1"),
        ("validation_fraction", float("nan"), "between 0 and 1"),
        ("block_size", 0, "at least 1 token"),
        ("max_documents", 0, "above 0"),
        ("source", " ", "source is empty"),
    ],
)
def test_settings_out_of_range_are_refused_by_name(field, value, expected):
    with pytest.raises(UserError, match=field) as caught:
        CorpusSettings(**{field: value})
    assert expected in str(caught.value)


def test_a_hub_out_of_reach_is_one_line_and_soon(tmp_path):
    program = (
        "from fewstep.data import *\nfrom fewstep.errors import UserError\n"
        f"s = dict(source='nobody/nothing', cache_dir={str(tmp_path)!r})\n"
        "for call in (lambda: prepare_corpus(CorpusSettings(**s)), lambda: load_tokenizer('nobody/nothing'),\n"
        "             lambda: streaming_corpus(CorpusSettings(**s, streaming=True))):\n"
        "    try: call()\n"
        "    except UserError as error: print(error)\n"
    )
    # A closed local port stands for a network that is not there, whatever this machine's network is.
    environment = os.environ | {
        "HF_HUB_OFFLINE": "0",
        "HF_ENDPOINT": "http://127.0.0.1:9",
        "HF_HOME": str(tmp_path),
        "PYTHONPATH": str(Path(fewstep.data.__file__).parents[2]),
    }
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=40)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 3
    assert all("'nobody/nothing' is no local path" in line and "offline or misspelt" in line for line in lines)
    assert "Retrying" not in done.stderr
    assert "Traceback" not in done.stderr


def test_offline_mode_is_one_line_too(make_settings):
    assert "'nobody/nothing' is no local path" in message(make_settings("nobody/nothing"))
    with pytest.raises(UserError, match="nobody/nothing cannot be loaded"):
        load_tokenizer("nobody/nothing")


def test_streaming_and_preparing_do_not_take_each_others_settings(tmp_path, make_settings):
    assert "streaming" in message(make_settings("sotu", streaming=True))
    with pytest.raises(UserError, match="streaming is off"):
        streaming_corpus(make_settings("sotu"))
    path = tmp_path / "a.txt"
    path.write_text(make_text(1))
    for source in ("sotu", path):
        with pytest.raises(UserError, match="cannot be streamed"):
            streaming_corpus(make_settings(source, streaming=True))


def test_a_file_as_tokenizer_is_refused(tmp_path):
    path = tmp_path / "tokenizer.json"
    path.write_text("{}")
    with pytest.raises(UserError, match="is no folder"):
        load_tokenizer(path)
