"""Batches counted in optimizer steps, whatever they hold."""

from collections.abc import Sized
from typing import ClassVar, TypeVar

from lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import Subset

from fewstep.data import StepBatchSampler
from fewstep.errors import UserError

Rows = TypeVar("Rows", bound=Sized)


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

    def report(self) -> str:
        """What the data are, in a line or two."""
        raise UserError(f"{type(self).__name__} is no data set: choose a class that is derived from it")

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
        )

    def held_out_share(self, rows: Rows) -> "Subset[dict[str, Tensor]]":
        """The first ``num_validation`` of held-out ``rows``, in order; each process gets its share."""
        rank, world_size = self.ranks()
        count = min(len(rows), self.num_validation)
        return Subset(rows, range(rank, count, world_size) if count >= world_size else range(count))  # type: ignore[arg-type]

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
