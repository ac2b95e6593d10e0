"""Parsing of command lines with errors of one line."""

import argparse
from typing import NoReturn

from fewstep.errors import UserError


class OneLineParser(argparse.ArgumentParser):
    """An ``ArgumentParser`` whose errors are ``UserError``s, told in one line without the usage text."""

    def __init__(self, prog: str, description: str) -> None:
        super().__init__(prog=prog, description=description, allow_abbrev=False)

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
