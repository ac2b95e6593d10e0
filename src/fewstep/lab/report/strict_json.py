"""JSON files of others, read with errors that name the file and the key."""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from fewstep.diagnostics.result import Estimate
from fewstep.errors import UserError, first_line
from fewstep.metrics.intervals import Interval


@dataclass(frozen=True)
class Node:
    """A ``value`` of a JSON ``file`` and the ``path`` of keys to it ("table.dabi"); "" is the whole."""

    file: Path
    value: Any
    path: str = ""

    def refuse(self, expected: str) -> NoReturn:
        """Raise ``UserError``: ``expected`` tells what should be here."""
        shown = json.dumps(self.value, ensure_ascii=True, default=str)[:60]
        place = f"{self.path} is {shown}" if self.path else f"the whole is {shown}"
        raise UserError(f"{self.file}: {place}: expected {expected}; make the file anew or take it away")

    def has(self, key: str) -> bool:
        """Whether this is an object with a value under ``key`` that is not null."""
        return isinstance(self.value, dict) and self.value.get(key) is not None

    def child(self, key: str) -> "Node":
        """What stands under ``key``. Raises ``UserError`` where this is no object or lacks it."""
        if not isinstance(self.value, dict):
            self.refuse(f"an object with {key!r}")
        if key not in self.value:
            place = f"{self.path}.{key}" if self.path else key
            raise UserError(f"{self.file}: {place} is missing; make the file anew or take it away")
        return Node(self.file, self.value[key], f"{self.path}.{key}" if self.path else key)

    def items(self) -> Iterator[tuple[str, "Node"]]:
        """Keys and values of an object."""
        if not isinstance(self.value, dict):
            self.refuse("an object")
        return ((key, self.child(key)) for key in self.value)

    def elements(self) -> list["Node"]:
        """The elements of a list."""
        if not isinstance(self.value, list):
            self.refuse("a list")
        return [Node(self.file, value, f"{self.path}[{index}]") for index, value in enumerate(self.value)]

    def number(self) -> float:
        """A finite number."""
        if isinstance(self.value, bool) or not isinstance(self.value, int | float):
            self.refuse("a finite number")
        try:
            value = float(self.value)
        except OverflowError:  # a whole number past what a float holds
            value = math.inf
        if not math.isfinite(value):
            self.refuse("a finite number")
        return value

    def count(self) -> int:
        """A whole number from 0 on."""
        if isinstance(self.value, bool) or not isinstance(self.value, int) or self.value < 0:
            self.refuse("a whole number from 0 on")
        return self.value

    def whole(self) -> int:
        """A whole number."""
        if isinstance(self.value, bool) or not isinstance(self.value, int):
            self.refuse("a whole number")
        return self.value

    def text(self) -> str:
        """A string."""
        if not isinstance(self.value, str):
            self.refuse("a text")
        return self.value

    def numbers(self) -> tuple[float, ...]:
        """A list of finite numbers."""
        return tuple(element.number() for element in self.elements())

    def estimate(self) -> Estimate:
        """An estimate: value and interval, or null where it is undetermined."""
        value = self.child("value").number() if self.has("value") else None
        interval = None
        if self.has("interval"):
            ends = self.child("interval")
            interval = Interval(ends.child("low").number(), ends.child("high").number())
        return Estimate(value, interval, self.child("num_examples").count())

    def estimates(self) -> list[Estimate]:
        """A list of them."""
        return [element.estimate() for element in self.elements()]


def read_text(file: Path) -> str:
    """The text of ``file``. Raises ``UserError`` where it cannot be read or is not UTF-8."""
    try:
        return file.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{file} is not UTF-8 (byte {error.start}): make the file anew or take it away") from None


def read_json(file: Path) -> Node:
    """The whole of a JSON ``file``, which must be an object. Raises ``UserError`` in one line."""
    return _object(file, read_text(file), "")


def read_json_lines(file: Path) -> list[Node]:
    """One object a line; a last line without its end, which a stopped command left, is not among them."""
    lines = read_text(file).split("\n")[:-1]
    return [_object(file, line, f"line {number}, ") for number, line in enumerate(lines, 1)]


def _object(file: Path, text: str, place: str) -> Node:
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        where = place or f"line {error.lineno}, "
        raise UserError(
            f"{file}, {where}column {error.colno}, is no JSON ({error.msg}): make the file anew or take it away"
        ) from None
    except RecursionError:
        raise UserError(f"{file} nests too deeply for a file of fewstep's: take it away") from None
    except ValueError as error:  # a number of thousands of digits
        raise UserError(f"{file} is no JSON that can be read ({first_line(error)}): take it away") from None
    node = Node(file, value, place.rstrip(", "))
    if not isinstance(value, dict):
        node.refuse("an object")
    return node
