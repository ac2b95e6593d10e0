"""Processes that are threads of this one, so that what they tell each other is tested in a moment."""

import threading
from collections.abc import Callable
from typing import TypeVar

from fewstep.evaluation.processes import Processes

Result = TypeVar("Result")


class Threads(Processes):
    """One of several threads that share a ``board``; it waits for the others as a process would."""

    def __init__(self, rank: int, board: list[object], barrier: threading.Barrier) -> None:
        super().__init__(rank, len(board))
        self.board, self.barrier = board, barrier

    def exchange(self, value: object) -> list[object]:
        self.board[self.rank] = value
        self.barrier.wait(30)
        found = list(self.board)
        self.barrier.wait(30)
        return found


def together(world_size: int, work: Callable[[Processes], Result]) -> list[Result | Exception]:
    """What ``work`` returns, or raises, in each of ``world_size`` processes."""
    board: list[object] = [None] * world_size
    barrier = threading.Barrier(world_size)
    results: list[Result | Exception] = [TimeoutError()] * world_size

    def run(rank: int) -> None:
        try:
            results[rank] = work(Threads(rank, board, barrier))
        except Exception as error:  # the test looks at it
            results[rank] = error

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(world_size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results
