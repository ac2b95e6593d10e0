"""Local files to documents: one reader for each kind of file, whether it is prepared on disk or streamed."""

import codecs
import csv
import io
import json
import re
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

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


def _lines(file: io.BufferedReader, path: str) -> Iterator[tuple[str, str]]:
    """Each line with its place."""
    for number, line in enumerate(file, 1):
        place = f"{path} line {number}"
        try:
            yield place, line.decode("utf-8-sig" if number == 1 else "utf-8", "surrogatepass")
        except UnicodeDecodeError as error:
            byte = error.object[error.start]
            raise UserError(f"{place} is not UTF-8 (byte 0x{byte:02x}): convert it, as by iconv -t UTF-8") from None


def _read_text(file: io.BufferedReader, path: str, field: str, *others: str) -> Records:
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


def _read_json(file: io.BufferedReader, path: str, *fields: str) -> Records:
    """A list of objects, or one object a line, where blank lines are skipped."""
    if file.peek(64).removeprefix(codecs.BOM_UTF8).lstrip().startswith(b"["):
        for number, record in enumerate(_parsed(file.read(), path, "a list of objects, or one object a line"), 1):
            yield f"{path} record {number}", record
        return
    for place, line in _lines(file, path):
        if line.strip():
            yield place, _parsed(line, place, "one object a line")


def _parsed(content: str | bytes, place: str, expected: str) -> Any:
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:  # also: a number of thousands of digits, deep nesting
        reason = error.msg if isinstance(error, json.JSONDecodeError) else first_line(error).partition(";")[0]
        raise UserError(f"{place} is not JSON ({reason}): expected {expected}") from None


def _read_csv(file: io.BufferedReader, path: str, *fields: str, delimiter: str) -> Records:
    """A table whose first row names the columns."""
    csv.field_size_limit(2**31 - 1)
    table = csv.DictReader(io.TextIOWrapper(file, "utf-8-sig", newline=""), delimiter=delimiter)
    yield from ((f"{path} row {number}", record) for number, record in enumerate(table, 1))


def _read_parquet(file: io.BufferedReader, path: str, *fields: str) -> Records:
    """A table of which the columns of the fields are read."""
    import pyarrow.parquet as pq

    table = pq.ParquetFile(file if file.seekable() else io.BytesIO(file.read()))
    columns = list(dict.fromkeys(top_column(table.schema_arrow.names, field, path) for field in fields))
    records = (record for batch in table.iter_batches(batch_size=256, columns=columns) for record in batch.to_pylist())
    yield from ((f"{path} row {number}", record) for number, record in enumerate(records, 1))


READERS: dict[str, Callable[..., Records]] = {
    ".txt": _read_text,
    ".jsonl": _read_json,
    ".json": _read_json,
    ".csv": partial(_read_csv, delimiter=","),
    ".tsv": partial(_read_csv, delimiter="\t"),
    ".parquet": _read_parquet,
}
"""Reader of an open file by the file's extension, with its path and the fields that are read, the text's first."""
_COMPRESSED = (".gz", ".zst")
EXTENSIONS = f"{', '.join(READERS)}, also compressed ({', '.join(_COMPRESSED)})"


def kind_of(path: Path) -> str | None:
    """The extension by which a file is read, such as ``.jsonl`` of ``a.jsonl.gz``; None if there is no reader."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    kind = (suffixes[:-1] if suffixes and suffixes[-1] in _COMPRESSED else suffixes)[-1:]
    return kind[0] if kind and kind[0] in READERS else None


def read_file(path: str, field: str, prompt_field: str | None = None) -> Iterator[dict[str, Any]]:
    """Every document of a file, cleaned: ``text``, found by ``field`` as :func:`text_of` says.

    Of pairs the text stands behind its prompt and a space, and ``prompt`` is the number of the prompt's characters.
    Raises ``UserError``, naming file and row, for what cannot be read as its extension says, and for half a pair.
    """
    if prompt_field is None:
        yield from ({"text": text_of(record, field, place)} for place, record in _records(path, field))
        return
    if kind_of(Path(path)) in (None, ".txt"):
        raise UserError(f"{path} has no fields: prompt_field is for records, as in a .jsonl file")
    for place, record in _records(path, field, prompt_field):
        text, prompt = text_of(record, field, place), text_of(record, prompt_field, place, "prompt_field")
        for name, part in ((field, text), (prompt_field, prompt)):
            if not part:
                raise UserError(f"{place}: field '{name}' is empty: give every prompt a text, or leave the record out")
        yield {"text": f"{prompt} {text}", "prompt": len(prompt)}


def _records(path: str, *fields: str) -> Records:
    import pyarrow as pa

    kind, count = kind_of(Path(path)) or ".txt", 0
    try:
        with io.BufferedReader(pa.input_stream(path)) as file:  # which decompresses by the extension
            for place, record in READERS[kind](file, path, *fields):
                yield place, record
                count += 1
    # Some errors of arrow and csv are no ValueError.
    except (OSError, EOFError, ValueError, OverflowError, pa.ArrowException, csv.Error) as error:
        raise UserError(
            f"{path} cannot be read as {kind} after {count} documents ({first_line(error)}): damaged, cut short, or "
            "not what its name says"
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
    files, skipped = [], []
    for file in sorted(path.rglob("*")):
        name = file.relative_to(path)
        if file.is_file() and not re.search(r"/\.", f"/{name}"):
            if kind_of(file) and file.stat().st_size > 0:
                files.append(file)
            else:
                skipped.append(str(name))
    if not files:
        reason = f"only files that are empty or of another kind ({', '.join(skipped[:5])})" if skipped else "no file"
        raise UserError(f"folder {path} holds {reason}: give a folder with such files as {EXTENSIONS}")
    return files, skipped
