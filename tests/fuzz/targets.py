"""What readers of files promise, as functions of a file's bytes: a result that can be used, or a ``UserError``.

Any other exception is a finding. ``{name: target}`` is :data:`TARGETS`; seeds to start from are :func:`seeds`.
"""

import gzip
import io
import json
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

from fewstep.data.readers import READERS, read_file
from fewstep.errors import UserError
from fewstep.evaluation.rows import RowFile, hash_of, rows_csv, table_lines
from fewstep.model import SavedModel
from fewstep.pipeline import TextGenerator
from tests.bundles import tiny_bundle

Target = Callable[[bytes], object]


@cache
def scratch() -> Path:
    """A folder of this process with a whole model in it."""
    folder = Path(tempfile.mkdtemp(prefix="fewstep-fuzz-"))
    tiny_bundle().save_pretrained(folder / "model")
    shutil.copytree(folder / "model", folder / "spoilt")
    return folder


def corpus(suffix: str) -> Target:
    """Documents of a file with this extension: strings that can be written again."""

    def read(content: bytes) -> object:
        file = scratch() / f"text{suffix}"
        file.write_bytes(content)
        return [document["text"].encode() for document in read_file(str(file), "text")]

    return read


def rows(content: bytes) -> object:
    """Rows of a sweep: they can stand in a table, and a file of them is read as the same again."""
    file = scratch() / "rows.jsonl"
    file.write_bytes(content)
    found = RowFile(file).read()
    rows_csv(found), table_lines(found)
    return [json.dumps(asdict(row), allow_nan=False).encode() for row in found]


def manifest(content: bytes) -> object:
    """``config.json`` of a model folder whose other files are whole: a model that samples."""
    folder = scratch() / "spoilt"
    (folder / "config.json").write_bytes(content)
    bundle = SavedModel.from_pretrained(folder)
    if {"autoencoder", "readout", "denoiser"} <= set(bundle.parts()) and bundle.identity.block_size <= 64:
        return TextGenerator(bundle).generate(1, 1).texts
    return bundle


TARGETS: dict[str, Target] = {
    **{suffix.removeprefix("."): corpus(suffix) for suffix in READERS},
    "txt.gz": corpus(".txt.gz"),
    "rows": rows,
    "manifest": manifest,
}


def kept(target: Target, content: bytes) -> str | None:
    """The line of a refusal, None where there was a result. Any other exception goes on."""
    try:
        target(content)
    except UserError as error:
        assert str(error).strip(), "a refusal without a word"
        return str(error)
    return None


def seeds(name: str) -> list[bytes]:
    """Whole files to begin with."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"text": ["one", None, "two"], "year": [1, 2, 3]}), sink := io.BytesIO())
    csv = b'id,text\n1,one\n2,"two, or\n""three"""\n'
    contents = {
        "txt": ["one<|endoftext|>two\fthree é漢".encode(), b"\xef\xbb\xbfwith a mark"],
        "jsonl": [b'{"text": "one"}\n\n{"text": null, "more": [1]}\n{"text": "two"}'],
        "json": [b'[{"text": "one"}, {"text": null}]', b'{"text": "one"}\n{"text": "two"}'],
        "csv": [csv],
        "tsv": [csv.replace(b",", b"\t")],
        "txt.gz": [gzip.compress(b"one<|endoftext|>two")],
        "parquet": [sink.getvalue()],
        "rows": [json.dumps(whole_row()).encode() + b"\n"],
        "manifest": [(scratch() / "model" / "config.json").read_bytes()],
    }
    return contents[name]


def whole_row() -> dict[str, Any]:
    """One row of a sweep as it stands in a file."""
    interval = {"low": 1.0, "high": 3.0}
    setting = {"name": "flow", "readout": "parallel", "num_steps": 4, "reinjection": "0", "noise_temperature": 1.0}
    values = {"perplexity": {"value": 2.0, "interval": interval, "by_seed": [2.0, None]}}
    values |= {name: {"value": value, "interval": None, "by_seed": []} for name, value in (("nfe", 5), ("mauve", None))}
    row = {"setting": setting, "values": values, "num_samples": 2, "seeds": [0, 1], "model": "1" * 12, "seconds": 0.1}
    row |= {"protocol": {"scorer": {}}, "protocol_hash": hash_of({"scorer": {}}), "batch_size": 2, "device": "cpu"}
    return {**row, "examples": ["text"], "per_sample": {"perplexity": [[1.0, 2.0]]}, "provenance": {"commit": None}}
