"""Whether the fields of a result that came from a file are what their annotations say."""

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from functools import cache
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints


def check_types(result: Any) -> None:
    """Raise ``TypeError`` where a field of the dataclass ``result``, at any depth, is of another type than annotated.

    Whole numbers pass as floats, and no bool as a number. Raises ``OverflowError`` for a whole number that is no float.
    """
    hints = _hints(result.__class__)
    for item in fields(result):
        _check(getattr(result, item.name), hints[item.name], item.name)


@cache
def _hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind)


def _check(value: Any, kind: Any, name: str) -> None:
    if not _fits(value, kind, name):
        raise TypeError(f"{name} is {value!r}, expected {kind}")


def _fits(value: Any, kind: Any, name: str) -> bool:
    origin, inner = get_origin(kind), get_args(kind)
    if kind is Any:
        return True
    if origin in (Union, UnionType):
        return any(_fits(value, one, name) for one in inner)
    if origin is Literal:
        return value in inner
    if origin is tuple:
        many = inner[-1:] == (Ellipsis,)
        return (
            isinstance(value, tuple)
            and (many or len(value) == len(inner))
            and all(_fits(one, inner[0] if many else inner[place], name) for place, one in enumerate(value))
        )
    if origin in (dict, Mapping):
        return isinstance(value, dict) and all(
            _fits(key, inner[0], name) and _fits(item, inner[1], name) for key, item in value.items()
        )
    if kind in (None, NoneType):
        return value is None
    if kind in (int, float):
        return not isinstance(value, bool) and (isinstance(value, kind) or (kind is float and _is_float(value)))
    if is_dataclass(kind):
        if not isinstance(value, kind):  # type: ignore[arg-type]
            return False
        check_types(value)
        return True
    return isinstance(value, kind)


def _is_float(value: Any) -> bool:
    """Whether a whole number stands for a float."""
    return isinstance(value, int) and float(value) == float(value)
