"""Several processes that share one evaluation, or one that does it alone."""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch.distributed as dist

from fewstep.errors import UserError, first_line

Item = TypeVar("Item")
Progress = Callable[[int, int, str], object]
"""Called as (done, in all, name of what is done or begins)."""


class Processes:
    """Who takes part: process ``rank`` of ``world_size``, of which the first reads, writes and speaks."""

    def __init__(self, rank: int = 0, world_size: int = 1) -> None:
        self.world_size = world_size
        self.rank = rank
        self.is_first = rank == 0

    @classmethod
    @contextmanager
    def join(cls) -> Iterator["Processes"]:
        """Those that the environment tells of (``torchrun`` sets it), connected by gloo; else this process alone.

        Raises ``UserError`` where the environment names a group that cannot be joined.
        """
        world_size = os.environ.get("WORLD_SIZE", "1")
        if world_size == "1":
            yield cls()
            return
        try:
            dist.init_process_group("gloo")
        except (RuntimeError, ValueError) as error:  # torch's own errors of a store or an address derive from the first
            raise UserError(
                f"WORLD_SIZE is {world_size}, and the processes cannot be joined ({first_line(error)}): start them by "
                "torchrun"
            ) from None
        try:
            yield cls(dist.get_rank(), dist.get_world_size())
        finally:
            dist.destroy_process_group()

    def share(self, items: Sequence[Item]) -> list[Item]:
        """This process's items: every ``world_size``-th, from its own rank on."""
        return list(items[self.rank :: self.world_size])

    def gather(self, work: Iterable[Item]) -> list[Item]:
        """The items of all processes' ``work``, by rank, in each of them; items are pickled.

        A ``UserError`` in the work of one is raised in all.
        """
        items: list[Item] = []
        problem = ""
        try:
            items.extend(work)
        except UserError as error:
            problem = str(error)
        parts = self.exchange((items, problem))
        for _, problem in parts:
            if problem:
                raise UserError(problem)
        return [item for part, _ in parts for item in part]

    def exchange(self, value: Any) -> list[Any]:
        """The values of all processes, by rank."""
        values = [value] * self.world_size
        if self.world_size > 1:
            dist.all_gather_object(values, value)
        return values
