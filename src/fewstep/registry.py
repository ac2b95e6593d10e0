"""Look things up by name: one registry (a dict) per kind, or a dotted path to something outside the package."""

from collections.abc import Mapping
from importlib import import_module
from typing import Any, TypeVar

from fewstep.errors import UserError, first_line

T = TypeVar("T")


def resolve(registry: Mapping[str, T], name: str, what: str) -> T:
    """The entry ``name`` of ``registry``, or what the dotted path ``package.module.attribute`` names.

    ``what`` is the kind of thing, for messages ("readout"). Raises ``UserError`` that lists the registered names.
    """
    if name in registry:
        return registry[name]
    if "." in name and all(part.isidentifier() for part in name.split(".")):
        return import_attribute(name, what)
    raise UserError(
        f"{what} is {name!r}: expected one of {', '.join(registry)}, or a dotted path such as my_package.my_module.name"
    )


def import_attribute(path: str, what: str) -> Any:
    """Import ``package.module.attribute``. Raises ``UserError`` where that fails, whatever the reason."""
    module, _, attribute = path.rpartition(".")
    try:
        return getattr(import_module(module), attribute)
    except Exception as error:  # importing runs foreign code, which may raise anything
        raise UserError(f"{what} {path!r} cannot be imported: {type(error).__name__}: {first_line(error)}") from None
