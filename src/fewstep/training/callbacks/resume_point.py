"""Checkpoints to resume from, and the signals that stop a run."""

import signal
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint

from fewstep.training.module import TrainingModule
from fewstep.training.run_folder import LAST
from fewstep.training.stopping import TrainingStopped

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
"""Ctrl-C, the end of a job, and what schedulers announce that end with (SLURM's ``--signal=USR1@120``)."""


class ResumePoint(Checkpoint):
    """Writes ``dirpath/last.ckpt`` every ``every_n_steps`` optimizer steps, after the last step, and when stopped.

    SIGINT (Ctrl-C), SIGTERM, SIGUSR1 and SIGUSR2 take effect between two steps, when weights, average and counters
    agree; Lightning's ``OnExceptionCheckpoint`` saves in the middle of one. A Ctrl-C after another signal ends the run
    at once. While steps are skipped (:class:`.SkipNonFinite`) no checkpoint is written that is only due. Several ranks
    agree to stop after every step. Listed after :class:`.WeightAverage`, whose update belongs to the step.
    """

    def __init__(self, dirpath: str = "checkpoints", every_n_steps: int = 500) -> None:
        if every_n_steps < 1:
            raise ValueError(f"checkpoint.every_n_steps is {every_n_steps}: expected a whole number of at least 1")
        self.file = Path(dirpath) / LAST
        self.every_n_steps = every_n_steps
        self._received: int | None = None
        self._saved_step: int | None = None
        self._is_due = False
        self._previous: dict[int, Any] = {}

    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Install the signal handlers, over those that Lightning has just installed."""
        self._install()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Install the signal handlers if there was no sanity check."""
        self._install()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Stop here, once the last step is logged and a due validation is done. Raises ``TrainingStopped``."""
        is_saved = self._saved_step == trainer.global_step or trainer.global_step == 0  # 0: nothing to save
        if self._received is not None and is_saved:
            raise self.stopped(trainer)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save when it is due or a signal came."""
        assert isinstance(pl_module, TrainingModule)
        if (batch_idx + 1) % trainer.accumulate_grad_batches or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        step = trainer.global_step
        self._is_due |= step % self.every_n_steps == 0
        due = self._is_due and not pl_module.step_was_skipped
        if self._agree_to_stop(trainer) or due or step == trainer.max_steps:
            trainer.save_checkpoint(self.file)
            self._saved_step, self._is_due = step, False

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Restore the signal handlers."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Restore the signal handlers."""
        self.teardown(trainer, pl_module, "fit")

    def stopped(self, trainer: Trainer) -> TrainingStopped:
        """The exception that reports the stop."""
        checkpoint = self.file if self.file.is_file() else None
        number = self._received or signal.SIGINT
        return TrainingStopped(number, trainer.global_step, checkpoint, first_process=trainer.is_global_zero)

    def _agree_to_stop(self, trainer: Trainer) -> bool:
        if trainer.world_size > 1:
            received = torch.tensor(self._received or 0, device=trainer.strategy.root_device)
            self._received = int(trainer.strategy.reduce(received, reduce_op="max").item()) or None
        return self._received is not None

    def _install(self) -> None:
        if not self._previous:
            try:
                self._previous = {number: signal.signal(number, self._receive) for number in SIGNALS}
            except ValueError:  # only the main thread may set handlers
                self._previous = {}

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self._received is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._received = self._received or number
