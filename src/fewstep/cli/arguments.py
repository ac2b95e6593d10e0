"""Parsing of command lines with errors of one line."""

import argparse
import sys
from collections.abc import Sequence
from typing import NoReturn, TypeVar

from fewstep.errors import UserError

Number = TypeVar("Number", int, float)


class OneLineParser(argparse.ArgumentParser):
    """An ``ArgumentParser`` whose errors are ``UserError``s, told in one line without the usage text."""

    def __init__(self, prog: str, description: str) -> None:
        super().__init__(prog=prog, description=description, allow_abbrev=False)

    # argparse's own has overloads for other kinds of namespaces, which nothing here asks for.
    def parse_args(self, args: Sequence[str] | None = None) -> argparse.Namespace:  # type: ignore[override]
        """The options in ``args``. Raises ``UserError``, also for a value that is empty: as a path, "" is a folder."""
        given = list(sys.argv[1:] if args is None else args)
        for before, word in zip(["", *given], given, strict=False):
            name, equals, value = word.partition("=")
            if not word or (name.startswith("--") and equals and not value):
                option = name or (before if before.startswith("--") else "an argument")
                raise UserError(f"{option} is empty (got ''): give a value, or leave it out")
        return super().parse_args(given)

    def error(self, message: str) -> NoReturn:
        """Raise ``UserError`` with argparse's message."""
        raise UserError(f"{message}; see {self.prog} --help")


def at_least_one(text: str) -> int:
    """A whole number >= 1, as an argument type."""
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number of at least 1")
    return value


def comma_parts(text: str, option: str) -> list[str]:
    """What stands between the commas of ``text``. Raises ``UserError``, naming ``option``, where that is nothing."""
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not parts:
        raise UserError(f"--{option} {text!r} names nothing: give one or more with commas between")
    return parts


def comma_numbers(text: str, option: str, kind: type[Number]) -> list[Number]:
    """The numbers between the commas of ``text``. Raises ``UserError``, naming ``option``, for what is none."""
    return [_number(part, option, kind) for part in comma_parts(text, option)]


def _number(text: str, option: str, kind: type[Number]) -> Number:
    try:
        return kind(text)
    except ValueError:
        expected = "a whole number" if kind is int else "a number"
        raise UserError(f"--{option} holds {text!r}: expected {expected}") from None
