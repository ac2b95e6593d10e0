"""Names and values from outside: looked up in a registry or by dotted path, and checked by annotations (pydantic)."""

import json
from collections.abc import Callable, Mapping
from dataclasses import fields
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


def lazy_attributes(package: str, modules: Mapping[str, str]) -> Callable[[str], Any]:
    """A package's ``__getattr__`` (PEP 562): imports ``modules[name]`` when ``name`` is first asked for."""

    def get_attribute(name: str) -> Any:
        if name not in modules:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(import_module(f"{package}.{modules[name]}"), name)

    return get_attribute


def validated(kind: type[T], values: Any, source: str) -> T:
    """A dataclass from plain values, strictly: no unknown or missing key, no conversion between types.

    Raises ``UserError`` that names the first key that is wrong.
    """
    from pydantic import TypeAdapter, ValidationError

    known = {item.name for item in fields(kind)}  # type: ignore[arg-type]
    if not isinstance(values, dict) or set(values) != known:
        wrong = sorted(set(values) ^ known, key=str) if isinstance(values, dict) else repr(values)[:80]
        raise UserError(f"{source}: unexpected or missing keys: {wrong}: save the model again")
    try:
        return TypeAdapter(kind).validate_json(json.dumps(values), strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(map(str, first["loc"]))
        raise UserError(f"{source}: {name} is {str(first['input'])[:80]!r}: {first['msg']}") from None
    except (TypeError, ValueError, RecursionError) as error:  # no JSON: a checkpoint may hold anything
        raise UserError(f"{source}: {first_line(error)}") from None
