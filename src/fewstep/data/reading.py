"""Local files to documents, with errors that name the file and the place."""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from fewstep.errors import UserError, first_line

END_OF_TEXT = "<|endoftext|>"
_SEPARATOR = re.compile(r"\f|" + re.escape(END_OF_TEXT))
_CHUNK_BYTES = 1 << 20


def clean_document(text: str | None) -> str:
    """The text with line ends as newlines and no white space around it; None counts as empty."""
    if text is None:
        return ""
    return text.replace("\r\n", "\n").replace("\r", "\n").strip()


def _decoded_chunks(path: Path) -> Iterator[str]:
    """The file's text in pieces of about 1 MiB, checked to be UTF-8 without NUL bytes."""
    offset, rest = 0, b""
    with path.open("rb") as file:
        while True:
            chunk = file.read(_CHUNK_BYTES)
            data = rest + chunk
            if b"\0" in chunk:
                place = offset + data.index(b"\0")
                raise UserError(
                    f"{path} looks binary (NUL byte at offset {place}): expected UTF-8 text, convert it first"
                )
            try:
                text, rest = data.decode("utf-8"), b""
            except UnicodeDecodeError as error:
                # A character cut by the end of this piece is no error: its bytes wait for the next one.
                if not chunk or error.reason != "unexpected end of data":
                    raise UserError(
                        f"{path} is not UTF-8 (byte 0x{data[error.start]:02x} at offset {offset + error.start}): "
                        "convert it, for instance with iconv -t UTF-8"
                    ) from None
                text, rest = data[: error.start].decode("utf-8"), data[error.start :]
            yield text.removeprefix("\ufeff") if offset == 0 else text
            offset += len(data) - len(rest)
            if not chunk:
                return


def read_text(path: Path, text_field: str) -> Iterator[str]:
    """One document a .txt file, or several where form feeds or ``<|endoftext|>`` part them. ``text_field`` is unused.

    Raises:
        UserError: the file is binary or not UTF-8.
    """
    pending = ""
    for text in _decoded_chunks(path):
        # A separator may lie across two pieces, so look back by its length.
        seen = max(0, len(pending) - len(END_OF_TEXT))
        pending += text
        if _SEPARATOR.search(pending, seen):
            *whole, pending = _SEPARATOR.split(pending)
            yield from whole
    yield pending


def read_jsonl(path: Path, text_field: str) -> Iterator[str]:
    """The field ``text_field`` of each line; blank lines are passed over.

    Raises:
        UserError: a line is no JSON object, or lacks the field, or the field is no text; names the line.
    """
    number, pending = 0, [""]  # pieces of a line, put together once: its length may be that of the file
    for text in _decoded_chunks(path):
        first, *others = text.split("\n")
        pending.append(first)
        for after in others:
            number += 1
            yield from _jsonl_line(path, number, "".join(pending), text_field)
            pending = [after]
    yield from _jsonl_line(path, number + 1, "".join(pending), text_field)


def _jsonl_line(path: Path, number: int, line: str, text_field: str) -> Iterator[str]:
    if not line.strip():
        return
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:  # besides bad JSON: a number of thousands of digits, deep nesting
        reason = error.msg if isinstance(error, json.JSONDecodeError) else str(error).partition(";")[0]
        raise UserError(f"{path} line {number} is not JSON ({reason}): expected one object a line") from None
    if not isinstance(record, dict):
        raise UserError(
            f"{path} line {number} is a JSON {type(record).__name__}: expected an object with '{text_field}'"
        )
    if text_field not in record:
        raise UserError(missing_field(f"{path} line {number}", text_field, list(record)))
    value = record[text_field]
    if value is not None and not isinstance(value, str):
        raise UserError(f"{path} line {number}: field '{text_field}' is {type(value).__name__}, expected text")
    yield value or ""


def missing_field(place: str, text_field: str, fields: list[str]) -> str:
    """The one line said when a record has no ``text_field``."""
    names = ", ".join(fields) or "none"
    return f"{place} has no field '{text_field}': set text_field to one of its fields ({names})"


def read_parquet(path: Path, text_field: str) -> Iterator[str]:
    """The column ``text_field``, row by row.

    Raises:
        UserError: no parquet file, a damaged one, no such column, or a column that is not text.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    damage = (
        pa.ArrowException,
        OSError,
        ValueError,
        OverflowError,
    )  # OSError, too, stands for bytes that make no sense
    try:
        table = pq.ParquetFile(path)
        schema = table.schema_arrow
    except damage as error:
        raise UserError(f"{path} is not a parquet file ({first_line(error)}): give a whole one") from None
    if text_field not in schema.names:
        raise UserError(missing_field(str(path), text_field, schema.names))
    kind = schema.field(text_field).type
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)):
        raise UserError(f"{path}: column '{text_field}' is {kind}, expected text")
    try:
        for batch in table.iter_batches(batch_size=1000, columns=[text_field]):
            yield from (value or "" for value in batch.column(0).to_pylist())
    except damage as error:
        raise UserError(f"{path} is damaged or cut short ({first_line(error)}): copy it again") from None


READERS: dict[str, Callable[[Path, str], Iterator[str]]] = {
    ".txt": read_text,
    ".jsonl": read_jsonl,
    ".parquet": read_parquet,
}
"""Reader of a local file by its extension."""
