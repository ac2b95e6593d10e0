"""Local files to documents: one reader for each kind of file, whether it is prepared on disk or streamed."""

import codecs
import csv
import gzip
import hashlib
import io
import json
import re
import zlib
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from fewstep.data.tokenizer import END_OF_TEXT
from fewstep.errors import UserError, first_line

_SEPARATOR = re.compile(r"\f|" + re.escape(END_OF_TEXT))
_SURROGATE = re.compile("[\ud800-\udfff]")
_CHUNK_BYTES = 1 << 20


def clean_document(value: object, place: str) -> str:
    """The text with line ends as newlines and no white space around it; None counts as empty.

    A lone surrogate, which no encoding can write, becomes U+FFFD. ``place`` names a value that is not text.
    """
    if value is None:
        return ""
    if not isinstance(value, str):
        raise UserError(f"{place} is {type(value).__name__}, expected text")
    return _SURROGATE.sub("\ufffd", value).replace("\r\n", "\n").replace("\r", "\n").strip()


def text_digest(text: str) -> int:
    """64 bits of a hash of the words, so that texts that differ in white space only count as the same."""
    return int.from_bytes(hashlib.blake2b(" ".join(text.split()).encode(), digest_size=8).digest(), "big")


def text_of(record: object, field: str, place: str) -> str:
    """The cleaned text in ``field`` of a record at ``place``: a column, or a dotted path into nested records."""
    if not isinstance(record, dict):
        raise UserError(f"{place} is a JSON {type(record).__name__}: expected an object with '{field}'")
    value: Any = record
    for key in [field] if field in record else field.split("."):
        if value is None:
            break
        if not isinstance(value, dict) or key not in value:
            names = ", ".join(list(_field_names(record))[:20]) or "none"
            raise UserError(f"{place} has no field '{field}': set text_field to one of its fields ({names})")
        value = value[key]
    return clean_document(value, f"{place}: field '{field}'")


def _field_names(record: dict[Any, Any], above: str = "") -> Iterator[str]:
    for key, value in record.items():
        if isinstance(value, dict) and value:
            yield from _field_names(value, f"{above}{key}.")
        else:
            yield f"{above}{key}"


def _read_text(file: BinaryIO, path: str, field: str) -> Iterator[str]:
    """Documents separated by form feeds or ``<|endoftext|>``; without any, the whole file is one."""
    decoder, pending, offset = codecs.getincrementaldecoder("utf-8-sig")(), "", 0
    while True:
        chunk = file.read(_CHUNK_BYTES)
        if b"\0" in chunk:
            place = offset + chunk.index(b"\0")
            raise UserError(f"{path} looks binary (NUL byte at offset {place}): expected UTF-8 text, convert it first")
        start = offset - len(decoder.getstate()[0])
        try:
            text = decoder.decode(chunk, final=not chunk)
        except UnicodeDecodeError as error:
            raise UserError(
                f"{path} is not UTF-8 (byte 0x{error.object[error.start]:02x} at offset {start + error.start}): "
                "convert it, for instance with iconv -t UTF-8"
            ) from None
        offset += len(chunk)
        # A separator may lie across two chunks, so look back by its length.
        seen = max(0, len(pending) - len(END_OF_TEXT))
        pending += text
        if _SEPARATOR.search(pending, seen):
            *documents, pending = _SEPARATOR.split(pending)
            yield from (clean_document(document, path) for document in documents)
        if not chunk:
            yield clean_document(pending, path)
            return


def _read_json_lines(file: BinaryIO, path: str, field: str) -> Iterator[str]:
    """One object a line; blank lines are skipped."""
    for number, line in enumerate(file, 1):
        if not line.strip():
            continue
        place = f"{path} line {number}"
        try:
            record = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8", "surrogatepass"))
        except (ValueError, RecursionError) as error:  # also: a number of thousands of digits, deep nesting
            reason = error.msg if isinstance(error, json.JSONDecodeError) else first_line(error).partition(";")[0]
            raise UserError(f"{place} is not JSON in UTF-8 ({reason}): expected one object a line") from None
        yield text_of(record, field, place)


def _read_json(file: BinaryIO, path: str, field: str) -> Iterator[str]:
    """A list of objects, or one object a line."""
    buffered = io.BufferedReader(file)  # type: ignore[type-var]
    if not buffered.peek(64).removeprefix(codecs.BOM_UTF8).lstrip().startswith(b"["):
        yield from _read_json_lines(buffered, path, field)
        return
    try:
        records = json.loads(buffered.read())
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON ({first_line(error)}): expected a list of objects") from None
    for number, record in enumerate(records, 1):
        yield text_of(record, field, f"{path} record {number}")


def _read_csv(file: BinaryIO, path: str, field: str, *, delimiter: str) -> Iterator[str]:
    """A table whose first row names the columns."""
    csv.field_size_limit(2**31 - 1)
    table = csv.DictReader(io.TextIOWrapper(file, "utf-8-sig", newline=""), delimiter=delimiter)
    for number, record in enumerate(table, 1):
        yield text_of(record, field, f"{path} row {number}")


def _read_parquet(file: BinaryIO, path: str, field: str) -> Iterator[str]:
    """A table of which one column is read."""
    import pyarrow.parquet as pq

    table = pq.ParquetFile(file)
    names = table.schema_arrow.names
    column = top_column(names, field, path)
    records = (record for batch in table.iter_batches(batch_size=256, columns=[column]) for record in batch.to_pylist())
    for number, record in enumerate(records, 1):
        yield text_of(record, field, f"{path} row {number}")


def top_column(names: Iterable[str], field: str, place: str) -> str:
    """The column of a table that ``field`` lies in. Raises ``UserError`` if there is none."""
    columns = dict.fromkeys(names)
    column = field if field in columns else field.partition(".")[0]
    if column not in columns:
        text_of(columns, field, place)
    return column


READERS: dict[str, Callable[[BinaryIO, str, str], Iterator[str]]] = {
    ".txt": _read_text,
    ".jsonl": _read_json_lines,
    ".json": _read_json,
    ".csv": partial(_read_csv, delimiter=","),
    ".tsv": partial(_read_csv, delimiter="\t"),
    ".parquet": _read_parquet,
}
"""Reader of an open file by the file's extension, with its path for messages and the field that holds the text."""


def _open_zstd(path: str) -> BinaryIO:
    try:
        import zstandard
    except ImportError:
        raise UserError(f"{path} needs the package zstandard: pip install zstandard, or decompress it") from None
    return zstandard.open(path)


_OPEN: dict[str, Callable[[str], Any]] = {"": partial(open, mode="rb"), ".gz": gzip.open, ".zst": _open_zstd}
EXTENSIONS = f"{', '.join(READERS)}, also compressed (.gz, .zst)"


def kind_of(path: Path) -> tuple[str, str] | None:
    """Extensions of a readable file, such as (``.jsonl``, ``.gz``), the second empty if it is not compressed."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    compression = suffixes.pop() if suffixes and suffixes[-1] in _OPEN else ""
    kind = suffixes[-1] if suffixes else ""
    return (kind, compression) if kind in READERS else None


def read_file(path: str, field: str) -> Iterator[str]:
    """Every document of a file, cleaned; ``field`` names the text in records, see :func:`text_of`.

    Raises ``UserError``, naming file and row, if it cannot be read as what its extension says.
    """
    import pyarrow as pa

    # Some errors of arrow, zlib and csv are no ValueError.
    damage = (OSError, EOFError, ValueError, OverflowError, pa.ArrowException, zlib.error, csv.Error)
    kind, compression = kind_of(Path(path)) or (".txt", "")
    count = 0
    try:
        with _OPEN[compression](path) as file:
            for text in READERS[kind](file, path, field):
                yield text
                count += 1
    except damage as error:
        raise UserError(
            f"{path} cannot be read as {kind}{compression} after {count} documents ({first_line(error)}): damaged, cut "
            "short, or not what its name says"
        ) from None


def read_files(paths: Iterable[str], field: str) -> Iterator[dict[str, str]]:
    """The documents of all files in order, as records with one ``text`` each."""
    for path in paths:
        yield from ({"text": text} for text in read_file(path, field))


def find_files(path: Path) -> tuple[list[Path], list[str]]:
    """The file itself, or all readable files below a folder in order of their paths; and the names of those skipped.

    Hidden files are left out of both. Raises ``UserError`` if nothing can be read.
    """
    if not path.is_dir():
        if kind_of(path) is None:
            raise UserError(f"{path} has the extension '{path.suffix}': expected {EXTENSIONS}")
        if path.stat().st_size == 0:
            raise UserError(f"{path} is empty: give a file with text in it")
        return [path], []
    files, skipped = [], []
    for file in sorted(path.rglob("*")):
        name = file.relative_to(path)
        if file.is_file() and not any(part.startswith(".") for part in name.parts):
            readable = kind_of(file) is not None and file.stat().st_size > 0
            files.append(file) if readable else skipped.append(str(name))
    if not files:
        reason = f"only files that are empty or of another kind ({', '.join(skipped[:5])})" if skipped else "no file"
        raise UserError(f"folder {path} holds {reason}: give a folder with such files as {EXTENSIONS}")
    return files, skipped
