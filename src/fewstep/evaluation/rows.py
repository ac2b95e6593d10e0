"""The one row type of every sweep, its append-only file, and the columns of its tables."""

import csv
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
from fewstep.evaluation.columns import aligned_columns, markdown_table, rounded
from fewstep.evaluation.protocol import differences, hash_of
from fewstep.metrics.intervals import Interval

FLOW, HELD_OUT, SHUFFLED = "flow", "held-out text", "words shuffled"
LANGUAGE_MODEL, NOISE = "language model", "pure noise"
"""Names of the rows of a model's own samples, of real text and its words, of the language model, of decoded noise."""

Axis = str | int | float
Setting = Mapping[str, Axis]
"""What a row is about: its ``name``, and further axes by name. An axis that does not apply is absent."""
_log = logging.getLogger(__name__)
Key = tuple[tuple[str, Axis], ...]


def key_of(setting: Setting) -> Key:
    """A hashable form of ``setting``."""
    return tuple(sorted(setting.items()))


def at_usual_temperature(setting: Setting) -> bool:
    """Whether a row is no part of a sweep over temperatures: neither noise nor tokens are drawn colder or hotter."""
    return "temperature" not in setting and setting.get("noise_scale", 1.0) == 1.0


def label_of(setting: Setting) -> str:
    """The setting on one line, axes at their usual value left out."""
    shown = (name for name in setting if name != "name" and setting[name] != _usual(name))
    return " ".join([str(setting["name"]), *(f"{_short(name)}={_written(setting[name])}" for name in shown)])


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

    def label(self) -> str:
        """For progress bars and charts."""
        return label_of(self.setting)


def same_protocol(rows: Iterable[Row]) -> str:
    """The protocol hash of all ``rows``. Raises ``UserError`` for no rows, and where two differ."""
    by_hash = {row.protocol_hash: row.protocol for row in rows}
    if not by_hash:
        raise UserError("no rows: expected at least one")
    if len(by_hash) > 1:
        (first, ours), (second, theirs), *_ = by_hash.items()
        differing = "; ".join(differences(ours, theirs)[:3])
        raise UserError(
            f"rows of scoring protocols {first} and {second} ({differing}): their numbers do not compare; keep them in "
            "separate files"
        )
    return next(iter(by_hash))


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
        rows = []
        *lines, torn = self._lines()
        if torn:
            _log.warning(
                "%s: the last line was cut off after %d bytes; its row is measured again", self.file, len(torn)
            )
        for number, line in enumerate(lines, 1):
            try:
                row = _adapter().validate_json(line, strict=True)
                edited = hash_of(row.protocol) != row.protocol_hash
                str(row.setting["name"])
            except (ValidationError, ValueError, RecursionError, KeyError):
                raise UserError(
                    f"{self.file}, line {number} is no row of this fewstep version: give another --out"
                ) from None
            if edited:
                raise UserError(
                    f"{self.file}, line {number}: the protocol does not have the hash {row.protocol_hash}: the file "
                    "was edited; give another --out"
                )
            rows.append(row)
        return rows

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
        if value is None:
            return ""
        if callable(self.form):
            return self.form(value)
        try:
            return str(value) if isinstance(value, str) else format(value, self.form)
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


def _usual(name: str) -> Axis | None:
    return COLUMNS[name].usual if name in COLUMNS else None


def _short(name: str) -> str:
    return {"num_steps": "K", "reinjection": "gamma"}.get(name, name)


def _written(value: Axis) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def table_lines(rows: Sequence[Row], columns: Mapping[str, Column] = COLUMNS) -> list[tuple[str, ...]]:
    """Heading and rows of a table as strings, with the columns that some row needs."""
    heading, cells = [], []
    for name, column in columns.items():
        values = [_cell(row, name) for row in rows]
        if all(value is None or value == column.usual for value in values):
            continue
        heading.append(column.title)
        cells.append([column.written(value) for value in values])
        if column.interval:
            heading.append("95 % interval")
            intervals = [row.interval(name) for row in rows]
            cells.append([f"{column.written(i.low)} - {column.written(i.high)}" if i else "" for i in intervals])
    return [tuple(heading), *zip(*cells, strict=True)]


def rows_markdown(rows: Sequence[Row], caption: str, columns: Mapping[str, Column] = COLUMNS) -> str:
    """A Markdown table with its caption below."""
    return markdown_table(table_lines(rows, columns), caption)


def rows_text(rows: Sequence[Row], caption: str, columns: Mapping[str, Column] = COLUMNS) -> str:
    """Aligned columns for a terminal, with the caption below."""
    return aligned_columns(table_lines(rows, columns), (0, 1, 2)) + "\n" + caption


def rows_csv(rows: Sequence[Row]) -> str:
    """Every axis and value of ``rows``, with the bounds of the intervals, unrounded."""
    axes = list(dict.fromkeys(name for row in rows for name in row.setting))
    values = list(dict.fromkeys(name for row in rows for name in row.values))
    written = io.StringIO()
    writer = csv.writer(written, lineterminator="\n")
    bounds = [name for name in values if any(row.interval(name) for row in rows)]
    writer.writerow([*axes, *values, *(f"{name}_{end}" for name in bounds for end in ("low", "high")), "num_samples"])
    for row in rows:
        intervals = [row.interval(name) for name in bounds]
        ends = [end for i in intervals for end in ((i.low, i.high) if i else (None, None))]
        axis_cells = [row.setting.get(name) for name in axes]
        writer.writerow([*axis_cells, *map(row.value, values), *ends, row.num_samples])
    return written.getvalue()
