"""A holder for what a training module uses but does not train."""

from typing import Any, Generic, TypeVar

T = TypeVar("T")


class Shared(Generic[T]):
    """Keeps ``value`` out of a module's parameters and out of its deep copies.

    Weight averaging copies the whole module; frozen networks and data sets behind this holder stay single.
    """

    def __init__(self, value: T) -> None:
        self.value = value

    def __deepcopy__(self, memo: dict[int, Any]) -> "Shared[T]":
        return self
