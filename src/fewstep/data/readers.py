"""Local files to documents: one reader for each kind of file, whether it is prepared on disk or streamed."""

import codecs
import csv
import gzip
import io
import json
import re
import zlib
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

from fewstep.data.tokenizer import END_OF_TEXT
from fewstep.errors import UserError, first_line

_SEPARATOR = re.compile(r"\f|" + re.escape(END_OF_TEXT))
_SURROGATE = re.compile("[\ud800-\udfff]")

Records = Iterator[tuple[str, object]]
"""Records with their places for messages ("poems.csv row 7"); a record is a dictionary unless the file is broken."""


def clean_document(value: object, place: str) -> str:
    """The text with line ends as newlines and no white space around it; None counts as empty.

    A lone surrogate, which no encoding can write, becomes U+FFFD. ``place`` names a value that is not text.
    """
    if value is None:
        return ""
    if not isinstance(value, str):
        raise UserError(f"{place} is {type(value).__name__}, expected text")
    return _SURROGATE.sub("\ufffd", value).replace("\r\n", "\n").replace("\r", "\n").strip()


def text_of(record: object, field: str, place: str, option: str = "text_field") -> str:
    """The cleaned text in ``field`` of a record at ``place``: a column, or a dotted path into nested records.

    ``option`` is what names the field, for messages.
    """
    if not isinstance(record, dict):
        raise UserError(f"{place} is a JSON {type(record).__name__}: expected an object with '{field}'")
    value: Any = record
    for key in [field] if field in record else field.split("."):
        if value is None:
            break
        if not isinstance(value, dict) or key not in value:
            names = ", ".join(map(str, islice(value, 20)) if isinstance(value, dict) else ()) or "none"
            raise UserError(f"{place} has no field '{field}': set {option} to one of these ({names})")
        value = value[key]
    return clean_document(value, f"{place}: field '{field}'")


def top_column(names: Iterable[str], field: str, place: str) -> str:
    """The column of a table that ``field`` lies in. Raises ``UserError`` for a missing one."""
    columns = dict.fromkeys(names)
    column = field if field in columns else field.partition(".")[0]
    if column not in columns:
        text_of(columns, field, place)
    return column


def _lines(file: BinaryIO, path: str) -> Iterator[tuple[str, str]]:
    """Each line with its place."""
    for number, line in enumerate(file, 1):
        place = f"{path} line {number}"
        try:
            yield place, line.decode("utf-8-sig" if number == 1 else "utf-8", "surrogatepass")
        except UnicodeDecodeError as error:
            byte = error.object[error.start]
            raise UserError(f"{place} is not UTF-8 (byte 0x{byte:02x}): convert it, as by iconv -t UTF-8") from None


def _read_text(file: BinaryIO, path: str, field: str, *others: str) -> Records:
    """Documents separated by form feeds or ``<|endoftext|>``; without any, the whole file is one."""
    pending: list[str] = []
    for place, line in _lines(file, path):
        if "\0" in line:
            raise UserError(f"{place} looks binary (a NUL byte): expected UTF-8 text, convert it first")
        *ends, rest = _SEPARATOR.split(line)
        for end in ends:
            yield path, {field: "".join([*pending, end])}
            pending = []
        pending.append(rest)
    yield path, {field: "".join(pending)}


def _read_json_lines(file: BinaryIO, path: str, *fields: str) -> Records:
    """One object a line; blank lines are skipped."""
    for place, line in _lines(file, path):
        if line.strip():
            yield place, _parsed(line, place, "one object a line")


def _read_json(file: BinaryIO, path: str, *fields: str) -> Records:
    """A list of objects, or one object a line."""
    buffered = io.BufferedReader(file)  # type: ignore[type-var]
    if not buffered.peek(64).removeprefix(codecs.BOM_UTF8).lstrip().startswith(b"["):
        yield from _read_json_lines(buffered, path)
        return
    for number, record in enumerate(_parsed(buffered.read(), path, "a list of objects"), 1):
        yield f"{path} record {number}", record


def _parsed(content: str | bytes, place: str, expected: str) -> Any:
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:  # also: a number of thousands of digits, deep nesting
        reason = error.msg if isinstance(error, json.JSONDecodeError) else first_line(error).partition(";")[0]
        raise UserError(f"{place} is not JSON ({reason}): expected {expected}") from None


def _read_csv(file: BinaryIO, path: str, *fields: str, delimiter: str) -> Records:
    """A table whose first row names the columns."""
    csv.field_size_limit(2**31 - 1)
    table = csv.DictReader(io.TextIOWrapper(file, "utf-8-sig", newline=""), delimiter=delimiter)
    for number, record in enumerate(table, 1):
        yield f"{path} row {number}", record


def _read_parquet(file: BinaryIO, path: str, *fields: str) -> Records:
    """A table of which the columns of the fields are read."""
    import pyarrow.parquet as pq

    table = pq.ParquetFile(file)
    columns = list(dict.fromkeys(top_column(table.schema_arrow.names, field, path) for field in fields))
    records = (record for batch in table.iter_batches(batch_size=256, columns=columns) for record in batch.to_pylist())
    for number, record in enumerate(records, 1):
        yield f"{path} row {number}", record


READERS: dict[str, Callable[..., Records]] = {
    ".txt": _read_text,
    ".jsonl": _read_json_lines,
    ".json": _read_json,
    ".csv": partial(_read_csv, delimiter=","),
    ".tsv": partial(_read_csv, delimiter="\t"),
    ".parquet": _read_parquet,
}
"""Reader of an open file by the file's extension, with its path and the fields that are read, the text's first."""


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
    *_, kind, last = ["", "", *(suffix.lower() for suffix in path.suffixes)]
    kind, compression = (kind, last) if last in _OPEN and last else (last, "")
    return (kind, compression) if kind in READERS else None


def read_file(path: str, field: str) -> Iterator[str]:
    """Every document of a file, cleaned; ``field`` names the text in records, see :func:`text_of`.

    Raises ``UserError``, naming file and row, if it cannot be read as what its extension says.
    """
    return (text_of(record, field, place) for place, record in _records(path, field))


def read_pairs(path: str, field: str, prompt_field: str) -> Iterator[dict[str, Any]]:
    """Every ``text`` of a file behind its prompt and a space, and ``prompt``, the characters of the prompt alone.

    Fields are read as in :func:`read_file`. Raises ``UserError`` too where one is empty.
    """
    if (kind_of(Path(path)) or (".txt",))[0] == ".txt":
        raise UserError(f"{path} has no fields: prompt_field is for records, as in a .jsonl file")
    for place, record in _records(path, field, prompt_field):
        text, prompt = text_of(record, field, place), text_of(record, prompt_field, place, "prompt_field")
        for name, part in ((field, text), (prompt_field, prompt)):
            if not part:
                raise UserError(f"{place}: field '{name}' is empty: give every prompt a text, or leave the record out")
        yield {"text": f"{prompt} {text}", "prompt": len(prompt)}


def _records(path: str, *fields: str) -> Records:
    import pyarrow as pa

    # Some errors of arrow, zlib and csv are no ValueError.
    damage = (OSError, EOFError, ValueError, OverflowError, pa.ArrowException, zlib.error, csv.Error)
    kind, compression = kind_of(Path(path)) or (".txt", "")
    count = 0
    try:
        with _OPEN[compression](path) as file:
            for place, record in READERS[kind](file, path, *fields):
                yield place, record
                count += 1
    except damage as error:
        raise UserError(
            f"{path} cannot be read as {kind}{compression} after {count} documents ({first_line(error)}): damaged, cut "
            "short, or not what its name says"
        ) from None


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
    visible = [file for file in sorted(path.rglob("*")) if not re.search(r"/\.", f"/{file.relative_to(path)}")]
    files = [file for file in visible if kind_of(file) and file.is_file() and file.stat().st_size > 0]
    read = set(files)
    skipped = [str(file.relative_to(path)) for file in visible if file.is_file() and file not in read]
    if not files:
        reason = f"only files that are empty or of another kind ({', '.join(skipped[:5])})" if skipped else "no file"
        raise UserError(f"folder {path} holds {reason}: give a folder with such files as {EXTENSIONS}")
    return files, skipped
