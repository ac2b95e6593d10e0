"""What a run does when something goes wrong: skip a step that is not finite, save and stop at a signal."""

import signal
import threading
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from lightning import Callback, Trainer
from lightning.pytorch.callbacks import Checkpoint
from torch.optim import Optimizer

from fewstep.errors import UserError
from fewstep.training.data_modules import Batch
from fewstep.training.module import announce, ends_logged_step, gradient_norm
from fewstep.training.run_folder import LAST

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
"""Ctrl-C, the end of a job, and what schedulers announce that end with (SLURM's ``--signal=USR1@120``)."""
SIGNAL_EXIT = 128
"""A shell reports a process that a signal ended as 128 plus the signal's number: 130 for Ctrl-C, 143 for SIGTERM."""


class SkipNonFinite(Callback):
    """Skips optimizer steps whose loss or gradient is not finite, and ends the run after ``max_in_a_row`` of them.

    A skipped step changes no weight and no optimizer state; its data count as seen, and schedule and weight average go
    on. ``train/skipped_steps`` counts them. When the run ends, every rank saves the batches of the last step to
    ``folder/step-N-rank-R.pt`` (``torch.load`` reads it).

    After the all-reduce every rank sees the same gradients, so all skip together, at the cost of one device sync.
    """

    def __init__(self, folder: str, max_in_a_row: int = 20) -> None:
        if max_in_a_row < 1:
            raise ValueError(f"nonfinite.max_in_a_row is {max_in_a_row}: expected a whole number of at least 1")
        self.folder = Path(folder)
        self.max_in_a_row = max_in_a_row
        self.skipped = 0
        self.in_a_row = 0
        self._batches: list[Batch] = []

    def state_dict(self) -> dict[str, Any]:
        """Both counts, for the checkpoint."""
        return {"skipped": self.skipped, "in_a_row": self.in_a_row}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore both counts."""
        self.skipped, self.in_a_row = state_dict["skipped"], state_dict["in_a_row"]

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Batch, batch_idx: int) -> None:
        """Remember the batches of the current optimizer step."""
        if batch_idx % trainer.accumulate_grad_batches == 0:
            self._batches = []
        self._batches.append(batch)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: Any, optimizer: Optimizer) -> None:
        """Drop the gradients if one is not finite, so that the optimizer has nothing to do.

        Raises ``UserError`` at the last of too many skipped steps in a row.
        """
        pl_module.step_was_skipped = not bool(torch.isfinite(gradient_norm(pl_module)))
        if not pl_module.step_was_skipped:
            self.in_a_row = 0
            return
        if self.in_a_row + 1 >= self.max_in_a_row:
            file = self._save_batches(trainer)
            raise UserError(
                f"loss or gradient not finite at step {trainer.global_step}, the last of {self.max_in_a_row} such "
                f"steps in a row; the weights are those from before them, the batches are in {file}: lower the "
                "learning rate, or use bf16 or float32 in place of fp16"
            )
        self.skipped += 1
        self.in_a_row += 1
        optimizer.zero_grad(set_to_none=True)

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Batch, batch_idx: int) -> None:
        """Log the number of skipped steps."""
        if ends_logged_step(trainer, batch_idx):
            pl_module.log("train/skipped_steps", float(self.skipped))

    def _save_batches(self, trainer: Trainer) -> Path:
        self.folder.mkdir(parents=True, exist_ok=True)
        file = self.folder / f"step-{trainer.global_step}-rank-{trainer.global_rank}.pt"
        torch.save([{name: value.cpu() for name, value in batch.items()} for batch in self._batches], file)
        trainer.strategy.barrier()  # a rank that ends early would take the others down before they have written
        return file


class TrainingStopped(KeyboardInterrupt):
    """A signal stopped the run; the message says what was saved."""

    def __init__(self, signal_number: int, step: int, *, is_saved: bool) -> None:
        saved = f"stopped after {step:,} steps; the same command with --ckpt_path last resumes there"
        super().__init__(saved if is_saved else "stopped before anything was saved; the same command starts again")
        self.exit_code = SIGNAL_EXIT + signal_number


class ResumePoint(Checkpoint):
    """Writes ``dirpath/last.ckpt`` every ``every_n_steps`` optimizer steps, and wherever training ends.

    That is after the last step, when the trainer is asked to stop (``max_time``, EarlyStopping), at an exception, and
    at SIGINT (Ctrl-C), SIGTERM, SIGUSR1 and SIGUSR2, always between two steps; Lightning's ``OnExceptionCheckpoint``
    saves in the middle of one. A Ctrl-C after another signal ends the run at once. What is only due is not saved after
    a skipped step (:class:`.SkipNonFinite`). Listed after :class:`.WeightAverage`, whose update belongs to it.
    """

    def __init__(self, dirpath: str = "checkpoints", every_n_steps: int = 500) -> None:
        if every_n_steps < 1:
            raise ValueError(f"checkpoint.every_n_steps is {every_n_steps}: expected a whole number of at least 1")
        self.file = Path(dirpath) / LAST
        self.every_n_steps = every_n_steps
        self._received: int | None = None
        self._saved_step = 0  # before the first step there is nothing to save
        self._is_due = False
        self._is_between_steps = True
        self._previous: dict[int, Any] = {}

    def on_sanity_check_start(self, trainer: Trainer, pl_module: Any) -> None:
        """Install the signal handlers, over those that Lightning has just installed."""
        self._install()

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        """Install the signal handlers if there was no sanity check."""
        self._install()
        if self.file.exists():  # what the run was resumed from, if from its own checkpoint
            self._saved_step = trainer.global_step

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Save when it is due or a signal came: then Lightning ends the run once it has logged and validated."""
        if (batch_idx + 1) % trainer.accumulate_grad_batches or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        self._is_between_steps = True
        step = trainer.global_step
        self._is_due |= step % self.every_n_steps == 0
        is_end = trainer.should_stop or step == trainer.max_steps
        stops = self._agree_to_stop(trainer)
        if stops or is_end or (self._is_due and not pl_module.step_was_skipped):
            self._save(trainer)
        if stops and not is_end:
            trainer._signal_connector.received_sigterm = True

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: Any, optimizer: Optimizer) -> None:
        """From here to the end of the step the weights are not those of any checkpoint."""
        self._is_between_steps = False

    def on_train_end(self, trainer: Trainer, pl_module: Any) -> None:
        """Save if training ended without, as after an EarlyStopping at a validation."""
        if self._is_between_steps and self._saved_step != trainer.global_step:
            _rewind_to_step(trainer)
            self._save(trainer)

    def teardown(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
        """Restore the signal handlers."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}

    def on_exception(self, trainer: Trainer, pl_module: Any, exception: BaseException) -> None:
        """Restore the signal handlers, and save the last whole step unless the run is to end at once."""
        self.teardown(trainer, pl_module, "fit")
        at_once = isinstance(exception, KeyboardInterrupt)
        if at_once or not self._is_between_steps or self._saved_step == trainer.global_step:
            return
        try:
            _rewind_to_step(trainer)
            # Without the barrier of trainer.save_checkpoint: other ranks may be gone.
            trainer.strategy.save_checkpoint(trainer._checkpoint_connector.dump_checkpoint(False), self.file)
            announce(trainer, f"==> saved {self.file} after {trainer.global_step:,} steps")
        except Exception as failure:  # the first exception is the one to report
            announce(trainer, f"==> could not save {self.file}: {failure}")

    def stopped(self, trainer: Trainer) -> TrainingStopped:
        """The exception that reports the stop."""
        return TrainingStopped(self._received or signal.SIGINT, trainer.global_step, is_saved=self.file.is_file())

    def _save(self, trainer: Trainer) -> None:
        trainer.save_checkpoint(self.file)
        self._saved_step, self._is_due = trainer.global_step, False

    def _agree_to_stop(self, trainer: Trainer) -> bool:
        if trainer.world_size > 1:
            received = torch.tensor(self._received or 0, device=trainer.strategy.root_device)
            self._received = int(trainer.strategy.reduce(received, reduce_op="max").item()) or None
        return self._received is not None

    def _install(self) -> None:
        if not self._previous and threading.current_thread() is threading.main_thread():  # others may not
            self._previous = {number: signal.signal(number, self._receive) for number in SIGNALS}

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self._received is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._received = self._received or number


def _rewind_to_step(trainer: Trainer) -> None:
    """Set Lightning's counters to where they are when the last whole step ends, the point that it resumes best from."""
    loop, epochs = trainer.fit_loop.epoch_loop, trainer.fit_loop.epoch_progress
    batches: list[Any] = [loop.batch_progress.current, loop.batch_progress.total]
    loop.val_loop.batch_progress.reset()
    if batches[0].processed == 0:  # a pass has just begun
        return
    for count in batches:
        count.processed -= count.processed % trainer.accumulate_grad_batches
        count.ready = count.started = count.processed
        count.completed = count.processed - 1
    passes: list[Any] = [epochs.current, epochs.total]
    for count in passes:
        count.started = count.ready
        count.processed = count.completed = count.ready - 1
    loop._batches_that_stepped = trainer.global_step - 1
