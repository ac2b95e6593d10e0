"""Batches counted in optimizer steps, whatever they hold."""

from typing import ClassVar

import torch
from lightning import LightningDataModule
from torch import Tensor

from fewstep.data import StepBatchSampler
from fewstep.errors import UserError


class StepDataModule(LightningDataModule):
    """Base of the data modules: which rows a process sees at which step, so that a resumed run sees the very rest.

    ``batch_size`` examples in a batch of one process, ``num_validation`` held-out examples at most are validated on
    (it is named ``validation_name`` in messages), ``num_workers`` processes load batches, ``seed`` decides the order.
    A subclass gives ``train_dataloader`` and ``val_dataloader``. Raises ``UserError`` for numbers out of range.
    """

    example_name: ClassVar[str] = "examples"
    """What a row is called in the lines that a run prints."""
    validation_name: ClassVar[str] = "num_validation"

    def __init__(self, batch_size: int, num_validation: int, num_workers: int, seed: int) -> None:
        super().__init__()
        if batch_size < 1 or num_validation < 1 or num_workers < 0:
            raise UserError(
                f"batch_size {batch_size}, {self.validation_name} {num_validation}, num_workers {num_workers}: "
                "expected at least 1, at least 1, and at least 0"
            )
        self.batch_size = batch_size
        self.num_validation = num_validation
        self.num_workers = num_workers
        self.seed = seed
        self._num_held_out_batches = 0

    def report(self) -> str:
        """What the data are, in a line or two."""
        raise UserError(f"{type(self).__name__} is no data set: choose a class that is derived from it")

    def transfer_batch_to_device(
        self, batch: dict[str, Tensor], device: torch.device, dataloader_idx: int
    ) -> dict[str, Tensor]:
        """Move a batch but its row numbers, which are looked up where the processor is."""
        content = {name: value for name, value in batch.items() if name != "index"}
        return {**super().transfer_batch_to_device(content, device, dataloader_idx), "index": batch["index"]}

    def step_batches(self, num_examples: int) -> StepBatchSampler:
        """Row numbers of the train batches from where the run stands to its end.

        The trainer asks for the loader after a checkpoint is restored, as long as it counts steps only
        (``max_epochs`` -1).
        """
        rank, world_size = self.ranks()
        return StepBatchSampler(
            num_examples,
            self.batch_size,
            num_batches=self._num_batches(),
            seed=self.seed,
            rank=rank,
            world_size=world_size,
            start_batch=self.batches_done(),
            batches_per_step=1 if self.trainer is None else self.trainer.accumulate_grad_batches,
        )

    def held_out_batches(self, num_rows: int) -> list[list[int]]:
        """Row numbers of the batches that this process validates on, of the first ``num_validation`` of ``num_rows``.

        The rows are cut into batches in order, and rank r takes the numbers r, r + W, ... of W processes, so that a
        batch holds the same rows whatever their number. All processes get equally many, for sharded ones would wait for
        each other for ever: where there are too few, the last batch comes again, and :meth:`held_out_weight` is 0.
        """
        rank, world_size = self.ranks()
        rows = range(min(num_rows, self.num_validation))
        batches = [list(rows[start : start + self.batch_size]) for start in range(0, len(rows), self.batch_size)]
        self._num_held_out_batches = len(batches)
        numbers = range(rank, -(-len(batches) // world_size) * world_size, world_size)
        return [batches[min(number, len(batches) - 1)] for number in numbers]

    def held_out_weight(self, batch_idx: int, size: int) -> int:
        """Weight of this process's ``batch_idx``-th validation batch of ``size`` rows in a mean over all: size W, or 0.

        The factor, the same for all, is there because Lightning averages the weights of the processes as whole numbers,
        rounded down, before it divides by them.
        """
        rank, world_size = self.ranks()
        return size * world_size if batch_idx * world_size + rank < self._num_held_out_batches else 0

    def ranks(self) -> tuple[int, int]:
        """This process and the number of them; (0, 1) before a trainer is there."""
        if self.trainer is None:
            return 0, 1
        return self.trainer.global_rank, self.trainer.world_size

    def batches_done(self) -> int:
        """Batches of this process that the run has behind it."""
        if self.trainer is None:
            return 0
        return self.trainer.global_step * self.trainer.accumulate_grad_batches

    def _num_batches(self) -> int:
        assert self.trainer is not None
        return max(self.trainer.max_steps, 0) * self.trainer.accumulate_grad_batches
