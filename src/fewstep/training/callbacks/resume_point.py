"""What a run can be continued from, and where it lets itself be stopped."""

import signal
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint

from fewstep.training.checkpoint_files import LAST
from fewstep.training.stopping import TrainingStopped

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
"""Ctrl-C, the end of a job, and what SLURM's ``--signal=USR1@120`` and similar schedulers announce that end with."""


class ResumePoint(Checkpoint):
    """Writes ``dirpath/last.ckpt`` every ``every_n_steps`` optimizer steps, after the last step, and when stopped.

    SIGINT (Ctrl-C), SIGTERM, SIGUSR1 and SIGUSR2 take effect between two steps: in the middle of one, weights,
    averages and counters disagree, and a run resumed from there would not repeat an unbroken one. A Ctrl-C after
    another signal ends the run at once; the others, which a scheduler sends one after another, do not.
    For the same reason a failure writes no checkpoint. While steps are skipped (:class:`SkipNonFinite`) none is
    written that is only due: the last good one stays. The callback stands after weight averaging, whose update
    belongs to the step. With several processes all of them must agree to stop, which they do after every step.
    """

    def __init__(self, dirpath: str = "checkpoints", every_n_steps: int = 500) -> None:
        if every_n_steps < 1:
            raise ValueError(f"checkpoint.every_n_steps is {every_n_steps}: expected a whole number of at least 1")
        self.file = Path(dirpath) / LAST
        self.every_n_steps = every_n_steps
        self._received: int | None = None
        self._saved_step: int | None = None
        self._overdue = False
        self._previous: dict[int, Any] = {}

    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take over the signals; Lightning has set its own handlers just before."""
        self._take_over()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take over the signals where there was no sanity check."""
        self._take_over()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Stop here, after the metrics of the last step are logged and a validation that was due is done.

        Raises ``TrainingStopped``.
        """
        # The first batch of a run ends without an earlier step of its own: then there is nothing to save.
        if self._received is not None and (self._saved_step == trainer.global_step or trainer.global_step == 0):
            raise self._stopped(trainer)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save where it is time to, or where a signal came."""
        if (batch_idx + 1) % trainer.accumulate_grad_batches or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        step = trainer.global_step
        is_last = step == trainer.max_steps
        self._overdue |= step % self.every_n_steps == 0
        due = self._overdue and not getattr(pl_module, "step_was_skipped", False)
        if self._agree_to_stop(trainer) or due or is_last:
            trainer.save_checkpoint(self.file)
            self._saved_step = step
            self._overdue = False

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Give the signals back."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Give the signals back after a failure too."""
        self.teardown(trainer, pl_module, "fit")

    def stopped_by(self, exception: BaseException, trainer: Trainer) -> TrainingStopped:
        """What ``exception``, with which Lightning left the fit, means."""
        return exception if isinstance(exception, TrainingStopped) else self._stopped(trainer)

    def _stopped(self, trainer: Trainer) -> TrainingStopped:
        checkpoint = self.file if self.file.is_file() else None
        number = self._received or signal.SIGINT
        return TrainingStopped(number, trainer.global_step, checkpoint, first_process=trainer.is_global_zero)

    def _agree_to_stop(self, trainer: Trainer) -> bool:
        if trainer.world_size == 1:
            return self._received is not None
        received = torch.tensor(self._received or 0, device=trainer.strategy.root_device)
        self._received = int(trainer.strategy.reduce(received, reduce_op="max").item()) or None
        return self._received is not None

    def _take_over(self) -> None:
        if self._previous:
            return
        try:
            self._previous = {number: signal.signal(number, self._receive) for number in SIGNALS}
        except ValueError:  # not the main thread: signals cannot be set there, and Python's own rules stay
            self._previous = {}

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self._received is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._received = self._received or number
