"""Several processes that share one evaluation, or one that does it alone."""

import os
from collections.abc import Sequence
from types import TracebackType
from typing import Any, TypeVar

import torch.distributed as dist

from fewstep.errors import UserError

Item = TypeVar("Item")


class Processes:
    """Who takes part: process ``rank`` of ``world_size``. As a context it leaves the group at the end."""

    def __init__(self, rank: int = 0, world_size: int = 1) -> None:
        self.rank = rank
        self.world_size = world_size

    @classmethod
    def join(cls) -> "Processes":
        """Those that the environment tells of (``torchrun`` sets it), connected by gloo; else this process alone.

        Raises ``UserError`` where the environment names a group that cannot be joined.
        """
        world_size = os.environ.get("WORLD_SIZE", "1")
        if world_size == "1":
            return cls()
        try:
            dist.init_process_group("gloo")
        except (RuntimeError, ValueError) as error:  # torch's own errors of a store or an address derive from the first
            first = (str(error).splitlines() or [type(error).__name__])[0]
            raise UserError(
                f"WORLD_SIZE is {world_size}, and the processes cannot be joined ({first}): start them by torchrun"
            ) from None
        return cls(dist.get_rank(), dist.get_world_size())

    @property
    def is_first(self) -> bool:
        """Whether this is the process that reads, writes and speaks."""
        return self.rank == 0

    def __enter__(self) -> "Processes":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave the group."""
        if self.world_size > 1:
            dist.destroy_process_group()

    def share(self, items: Sequence[Item]) -> list[Item]:
        """This process's items: every ``world_size``-th, from its own rank on."""
        return list(items[self.rank :: self.world_size])

    def gather(self, items: list[Item]) -> list[Item]:
        """The items of all processes, by rank, in the first one; an empty list in the others. Items are pickled."""
        if self.world_size == 1:
            return items
        parts: list[Any] | None = [None] * self.world_size if self.is_first else None
        dist.gather_object(items, parts, dst=0)
        return [] if parts is None else [item for part in parts for item in part]

    def from_first(self, value: Item) -> Item:
        """What the first process gives as ``value``, in all of them."""
        if self.world_size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]
