"""One parser for all commands: a dataclass of options becomes a jsonargparse command line and a YAML schema."""

import inspect
import math
from collections.abc import Sequence
from dataclasses import MISSING, Field, fields, is_dataclass
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from docstring_parser import parse
from jsonargparse import ActionYesNo, ArgumentError, ArgumentParser

from fewstep.errors import UserError
from fewstep.settings import PARSER, ConfigOption, expand_home, parser_message, whole_number

Options = TypeVar("Options")
Number = TypeVar("Number", int, float)


def command_parser(command: str, options: type) -> ArgumentParser:
    """The parser of ``fewstep COMMAND``, whose options are the fields of the dataclass ``options``.

    A field without a default is positional, a bool is a pair of flags (``--mauve``, ``--no_mauve``), a list takes its
    values with blanks between. Each base class is a group, its docstring the help.
    """

    def title(group: type) -> str:
        return (group.__doc__ or "").partition("\n")[0].rstrip(".")

    parser = ArgumentParser(prog=f"fewstep {command}", description=title(options), **PARSER)
    parser.add_argument("--config", action=ConfigOption, help="a YAML file of these options")
    hints = get_type_hints(options)
    for group in filter(is_dataclass, options.__mro__):
        help_of = {param.arg_name: param.description for param in parse(group.__doc__ or "").params}
        section = parser if group is options else parser.add_argument_group(title(group))
        for own in fields(options):
            if own.name in inspect.get_annotations(group):
                _add_option(section, own, hints[own.name], help_of[own.name])
    return parser


def _add_option(section: Any, own: "Field[Any]", hint: Any, text: str | None) -> None:
    required = own.default is MISSING and own.default_factory is MISSING
    positional = required or own.metadata.get("positional")
    keywords: dict[str, Any] = {"help": text, "type": hint}
    if not required:
        keywords["default"] = own.default if own.default_factory is MISSING else own.default_factory()
    if hint is bool:
        keywords |= {"action": ActionYesNo}
        del keywords["type"]
    elif get_origin(hint) is list:
        keywords |= {"type": get_args(hint)[0], "nargs": "+"}
    elif positional and not required:
        keywords |= {"nargs": "?"}
    section.add_argument(own.name if positional else f"--{own.name}", **keywords)


def parse_options(command: str, options: type[Options], argv: Sequence[str]) -> Options:
    """The options in ``argv``, with ``~`` expanded. Raises ``UserError``, also for an empty value."""
    for before, word in zip(["", *argv], argv, strict=False):
        name, equals, value = word.partition("=")
        if not word or (name.startswith("--") and equals and not value):
            option = name or (before if before.startswith("--") else "an argument")
            raise UserError(f"{option} is empty (got ''): give a value, or leave it out")
    try:
        parsed = expand_home(command_parser(command, options).parse_args([whole_number(word) for word in argv]))
    except ArgumentError as error:
        raise UserError(f"{parser_message(error)}; see fewstep {command} --help") from None
    return options(**{field.name: parsed[field.name] for field in fields(options)})  # type: ignore[arg-type]


def comma_parts(text: str | float | Sequence[Any], option: str) -> list[str]:
    """The parts of ``text`` between commas, or the items of a YAML list. Raises ``UserError`` for none."""
    items = map(str, text) if isinstance(text, list | tuple) else str(text).split(",")
    parts = [part.strip() for part in items if part.strip()]
    if not parts:
        raise UserError(f"--{option} {text!r} names nothing: give one or more with commas between")
    return parts


def comma_numbers(
    text: str | float | Sequence[Any], option: str, kind: type[Number], least: float = -math.inf
) -> list[Number]:
    """The numbers of a list as in :func:`comma_parts`, all at least ``least``. Raises ``UserError``."""
    expected = "whole numbers" if kind is int else "numbers"
    expected += f" of at least {least}" if least > -math.inf else ""
    try:
        numbers = [kind(part) for part in comma_parts(text, option)]
        if min(numbers) >= least:
            return numbers
    except ValueError:
        pass
    raise UserError(f"--{option} is {text!r}: expected {expected}, with commas between")
