"""Names to things, and dotted paths to things of other packages."""

from collections.abc import Mapping
from importlib import import_module
from typing import TypeVar

from fewstep.errors import UserError

T = TypeVar("T")


def resolve(registry: Mapping[str, T], name: str, what: str) -> T:
    """The entry ``name``, or what the dotted path ``name`` leads to. Raises UserError that lists the names."""
    if name in registry:
        return registry[name]
    module, _, attribute = name.rpartition(".")
    try:
        return getattr(import_module(module), attribute)
    except (ImportError, AttributeError, ValueError):
        raise UserError(f"{what} is {name!r}: expected one of {', '.join(registry)}, or a dotted path") from None
