"""Append-only JSONL results file; an interrupted sweep resumes from it."""

import json
import os
from pathlib import Path
from typing import Any, Generic, Protocol, Self, TypeVar

from fewstep.errors import UserError
from fewstep.registry import check_types


def _refused(name: str) -> float:
    """NaN and infinities are no JSON, though Python's reader takes them; none was ever written."""
    raise ValueError(f"{name} in a row")


class Row(Protocol):
    """What stands on one line."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        ...

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """The inverse. Raises ``KeyError``, ``TypeError``, ``ValueError`` or ``AttributeError`` for other values."""
        ...


AnyRow = TypeVar("AnyRow", bound=Row)


class RowFile(Generic[AnyRow]):
    """A JSONL file of rows of one ``kind`` that grows by one line a row, so that what a killed study had finished is
    there. ``called`` is what an error calls a row."""

    def __init__(self, file: Path, kind: type[AnyRow], called: str = "row of this fewstep version") -> None:
        self.file = file
        self.kind = kind
        self.called = called

    def read(self) -> list[AnyRow]:
        """The rows; a last line that was cut off in the middle is not among them.

        Raises ``UserError`` where the file cannot be read, or another line of it is no row.
        """
        rows = []
        for number, line in enumerate(self._whole_lines(), 1):
            try:
                rows.append(self.kind.from_dict(json.loads(line, parse_constant=_refused)))
                check_types(rows[-1])
            except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
                raise UserError(f"{self.file}, line {number} is no {self.called}: give another --out") from None
        return rows

    def torn_bytes(self) -> int:
        """Length of what a killed process left of a last line, 0 where the file ends with a whole one.

        :meth:`read` passes over it and :meth:`append` writes over it. Raises ``UserError`` as :meth:`read` does.
        """
        return len(self._lines()[-1])

    def append(self, row: AnyRow) -> None:
        """Add one line, on the disk when this returns. Raises ``UserError`` where it cannot be written."""
        line = json.dumps(row.to_dict(), ensure_ascii=False, allow_nan=False) + "\n"
        try:
            whole = sum(len(line) + 1 for line in self._whole_lines())
            with self.file.open("ab") as stream:
                stream.truncate(whole)  # what a killed process left of a line
                stream.write(line.encode("utf-8", "backslashreplace"))  # JSON's escape for a lone surrogate
                stream.flush()
                os.fsync(stream.fileno())
        except OSError as error:
            raise UserError(f"cannot write {self.file}: {error.strerror or error}") from None

    def _whole_lines(self) -> list[bytes]:
        return self._lines()[:-1]

    def _lines(self) -> list[bytes]:
        """What stands between line ends; the last one is empty where the file ends with a whole line."""
        try:
            return self.file.read_bytes().split(b"\n")
        except FileNotFoundError:
            return [b""]
        except OSError as error:
            raise UserError(f"cannot read {self.file}: {error.strerror or error}") from None
