"""Command lines of the benchmark scripts: argparse with errors of one line."""

import argparse
from typing import NoReturn

from fewstep.cli.parser import comma_parts
from fewstep.errors import UserError

__all__ = ["OneLineParser", "at_least_one", "comma_parts"]


class OneLineParser(argparse.ArgumentParser):
    """An ``ArgumentParser`` whose errors are ``UserError``s, without the usage text."""

    def __init__(self, prog: str, description: str) -> None:
        super().__init__(prog=prog, description=description, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        """Raise ``UserError`` with argparse's message."""
        raise UserError(f"{message}; see {self.prog} --help")


def at_least_one(text: str) -> int:
    """A whole number >= 1, as an argument type."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number of at least 1")
    return int(text)
