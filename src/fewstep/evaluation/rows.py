"""The one row type of every sweep, its append-only file, the protocol that rows share, and their tables."""

import csv
import hashlib
import io
import json
import logging
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, TypeAdapter, ValidationError

from fewstep.errors import UserError
from fewstep.evaluation.columns import rounded
from fewstep.metrics.intervals import Interval

FLOW, HELD_OUT, SHUFFLED = "flow", "held-out text", "words shuffled"
LANGUAGE_MODEL, NOISE, READ_BACK = "language model", "pure noise", "held-out text read back"
"""Names of the rows of a model's own samples, of real text and its words, of the language model, of decoded noise."""
HASH_DIGITS = 12

Axis = str | int | float
Setting = Mapping[str, Axis]
"""What a row is about: its ``name``, and further axes by name. An axis that does not apply is absent."""
Key = tuple[tuple[str, Axis], ...]
_log = logging.getLogger(__name__)


def key_of(setting: Setting) -> Key:
    """A hashable form of ``setting``."""
    return tuple(sorted(setting.items()))


def at_usual_temperature(setting: Setting) -> bool:
    """Whether neither noise nor tokens are drawn colder or hotter; at token temperature 0 no token is drawn."""
    return not setting.get("temperature") and setting.get("noise_scale", 1.0) == 1.0


def label_of(setting: Setting) -> str:
    """The setting on one line, axes at their usual value left out."""
    parts = [str(setting["name"])]
    for name, value in setting.items():
        if name != "name" and value != COLUMNS.get(name, Column("")).usual:
            short = {"num_steps": "K", "reinjection": "gamma"}.get(name, name)
            parts.append(f"{short}={value:g}" if isinstance(value, float) else f"{short}={value}")
    return " ".join(parts)


def canonical_json(values: Any) -> str:
    """JSON with sorted keys and no white space: one text for equal values."""
    return json.dumps(values, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def hash_of(values: Any) -> str:
    """12 hex digits of SHA-256 of the canonical JSON of plain values."""
    return hashlib.sha256(canonical_json(values).encode()).hexdigest()[:HASH_DIGITS]


def differences(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[str]:
    """In what two protocols differ: "scorer.dtype: 'float32' against 'float16'"."""
    lines = []
    for name in sorted({*first, *second}):
        ours, theirs = first.get(name), second.get(name)
        if isinstance(ours, Mapping) and isinstance(theirs, Mapping):
            lines += [f"{name}.{line}" for line in differences(ours, theirs)]
        elif ours != theirs:
            lines.append(f"{name}: {ours!r} against {theirs!r}")
    return lines


@dataclass(frozen=True)
class Value:
    """A number measured on the samples of a setting, its 95 % interval, and its value for each seed.

    None where the samples do not determine it; ``by_seed`` is empty where it was not measured by seed.
    """

    value: float | None
    interval: Interval | None = None
    by_seed: tuple[float | None, ...] = ()


@dataclass(frozen=True)
class Row:
    """What was measured on ``num_samples`` samples, of all ``seeds`` together, of one setting.

    ``values`` by name; ``model`` the digest of the model; rows compare where ``protocol_hash``, the hash of
    ``protocol``, is equal. ``seconds`` of computing, summed over batches, in batches of ``batch_size`` on ``device``.
    ``examples`` are the first few samples as text. ``per_sample``: for paired comparisons, the numbers (N, c) that a
    value is a statistic of. ``provenance``: code, versions, command and machine.
    """

    __pydantic_config__ = ConfigDict(allow_inf_nan=False, extra="forbid")

    setting: dict[str, Axis]
    values: dict[str, Value]
    num_samples: int
    seeds: tuple[int, ...]
    model: str
    protocol_hash: str
    protocol: dict[str, Any]
    batch_size: int
    device: str
    seconds: float | None = None
    examples: tuple[str, ...] = ()
    per_sample: dict[str, tuple[tuple[float, ...], ...]] = field(default_factory=dict)
    provenance: dict[str, Any] | None = None

    @property
    def key(self) -> Key:
        """What tells rows of one file apart."""
        return key_of(self.setting)

    def value(self, name: str) -> float | None:
        """The value ``name``; None where it was not measured or is undetermined."""
        return None if name not in self.values else self.values[name].value

    def interval(self, name: str) -> Interval | None:
        """The 95 % interval of the value ``name``, where it has one."""
        return None if name not in self.values else self.values[name].interval


def check_protocol(rows: Iterable[Row]) -> None:
    """Raise ``UserError`` where two of ``rows`` have different protocols."""
    by_hash = {row.protocol_hash: row.protocol for row in rows}
    if len(by_hash) > 1:
        (first, ours), (second, theirs), *_ = by_hash.items()
        differing = "; ".join(differences(ours, theirs)[:3])
        raise UserError(
            f"rows of scoring protocols {first} and {second} ({differing}): their numbers do not compare; keep them in "
            "separate files"
        )


@cache
def _adapter() -> TypeAdapter[Row]:
    return TypeAdapter(Row)


class RowFile:
    """Append-only JSONL file of rows; an interrupted sweep resumes from it."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def read(self) -> list[Row]:
        """The rows, without a last line that was cut off.

        Raises ``UserError`` where the file cannot be read, a line is no row, or a protocol does not match its hash.
        """
        *lines, torn = self._lines()
        if torn:
            _log.warning(
                "%s: the last line was cut off after %d bytes; its row is measured again", self.file, len(torn)
            )
        return [self._row(number, line) for number, line in enumerate(lines, 1)]

    def _row(self, number: int, line: bytes) -> Row:
        try:
            row = _adapter().validate_json(line, strict=True)
            is_edited = hash_of(row.protocol) != row.protocol_hash
            str(row.setting["name"])
            json.dumps(row.provenance, allow_nan=False)  # its type lets infinities through
        except (ValidationError, ValueError, RecursionError, KeyError):
            raise UserError(
                f"{self.file}, line {number} is no row of this fewstep version: give another --out"
            ) from None
        if is_edited:
            raise UserError(
                f"{self.file}, line {number}: the protocol does not have the hash {row.protocol_hash}: the file was "
                "edited; give another --out"
            )
        return row

    def append(self, row: Row) -> None:
        """Add one line, on the disk when this returns. Raises ``UserError`` where it cannot be written."""
        line = json.dumps(_adapter().dump_python(row), ensure_ascii=False, allow_nan=False) + "\n"
        try:
            whole = sum(len(line) + 1 for line in self._lines()[:-1])
            with self.file.open("ab") as stream:
                stream.truncate(whole)  # a killed process may have left half a line
                stream.write(line.encode("utf-8", "replace"))  # a path of a command may be no UTF-8
                stream.flush()
                os.fsync(stream.fileno())
        except OSError as error:
            raise UserError(f"cannot write {self.file}: {error.strerror or error}") from None

    def _lines(self) -> list[bytes]:
        """What stands between line ends; the last one is empty where the file ends with a whole line."""
        try:
            return self.file.read_bytes().split(b"\n")
        except FileNotFoundError:
            return [b""]
        except OSError as error:
            raise UserError(f"cannot read {self.file}: {error.strerror or error}") from None


@dataclass(frozen=True)
class Column:
    """How a table shows an axis, a value or a field of rows: ``title``, and ``form``, a format or a function.

    With ``interval`` a column of intervals follows. A column is left out where no row has it, and one with a ``usual``
    value where every row is at it.
    """

    title: str
    form: str | Callable[[float], str] = ""
    interval: bool = False
    usual: Axis | None = None

    def written(self, value: Any) -> str:
        """``value`` as the table shows it; "" for None."""
        if value is None or isinstance(value, str):
            return value or ""
        if callable(self.form):
            return self.form(value)
        try:
            return format(value, self.form)
        except OverflowError:  # an integer beyond every float
            return str(value)


COLUMNS: dict[str, Column] = {
    "name": Column("text"),
    "readout": Column("readout"),
    "reinjection": Column("reinjection"),
    "noise_temperature": Column("noise", "g", usual=1.0),
    "noise_scale": Column("noise scale", "g", usual=1.0),
    "noise": Column("drawn", usual="fresh"),
    "snap": Column("snap", usual="none"),
    "commit_tokens": Column("commit", ".0f"),
    "guidance": Column("guidance", "g"),
    "num_steps": Column("K", ".0f"),
    "nfe": Column("NFE", ".0f"),
    "perplexity": Column("perplexity", rounded, interval=True),
    "entropy_nats": Column("entropy", ".2f"),
    "tokens_per_sample": Column("tokens", ".1f"),
    "distinct_2": Column("distinct-2", ".3f"),
    "repeated_4grams": Column("rep-4", ".3f"),
    "longest_copy_tokens": Column("copy", ".0f"),
    "memorised_8grams": Column("mem-8", ".3f"),
    "mauve": Column("MAUVE", ".3f"),
    "late_flip_rate": Column("late flips", ".3f"),
    "cci": Column("CCI", ".3f"),
    "rms_ratio": Column("rms / data", ".2f"),
    "tokens_per_second": Column("tokens / s", ",.0f"),
    "num_samples": Column("N", ".0f"),
}
"""Columns of every table, by the name of an axis of the setting, else of a value, else of a field of the row."""


def _cell(row: Row, name: str) -> Any:
    if name in row.setting:
        return row.setting[name]
    return row.value(name) if name in row.values else getattr(row, name, None)


def table_lines(rows: Sequence[Row], columns: Mapping[str, Column] = COLUMNS) -> list[tuple[str, ...]]:
    """Heading and rows of a table as strings, with the columns that some row needs."""
    heading, cells = [], []
    for name, column in columns.items():
        own = [_cell(row, name) for row in rows]
        if all(value is None or value == column.usual for value in own):
            continue
        heading.append(column.title)
        cells.append([column.written(value) for value in own])
        if column.interval:
            heading.append("95 % interval")
            intervals = [row.interval(name) for row in rows]
            cells.append([f"{column.written(i.low)} - {column.written(i.high)}" if i else "" for i in intervals])
    return [tuple(heading), *zip(*cells, strict=True)]


def rows_csv(rows: Sequence[Row]) -> str:
    """Every axis and value of ``rows``, with the bounds of the intervals, unrounded."""
    records = []
    for row in rows:
        values = {name: value.value for name, value in row.values.items()}
        intervals = {name: value.interval for name, value in row.values.items() if value.interval}
        bounds = {f"{name}_{end}": getattr(i, end) for name, i in intervals.items() for end in ("low", "high")}
        records.append((row.setting, values, bounds, {"num_samples": row.num_samples}))
    columns = dict.fromkeys(name for parts in zip(*records, strict=True) for part in parts for name in part)
    written = io.StringIO()
    writer = csv.DictWriter(written, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: cell for part in parts for name, cell in part.items()} for parts in records)
    return written.getvalue()
