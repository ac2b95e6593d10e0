"""Ctrl-C takes effect between two steps, so that the checkpoint it leaves is one that an unbroken run had too."""

import signal
from types import FrameType
from typing import Any

from lightning import Callback, LightningModule, Trainer


class InterruptBetweenSteps(Callback):
    """Turns SIGINT into a ``KeyboardInterrupt`` at the start of the next step; a second one interrupts at once.

    In the middle of an optimizer step weights and counters disagree; resuming from there would not repeat the run.
    (SIGTERM is Lightning's own and already waits for the end of the step.)
    """

    def __init__(self) -> None:
        self._received = False
        self._previous: Any = None

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take over SIGINT. Outside the main thread signals cannot be set: then Python's own rules stay."""
        try:
            self._previous = signal.signal(signal.SIGINT, self._receive)
        except ValueError:
            self._previous = None

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Interrupt here, where every counter is at rest."""
        if self._received:
            self._received = False
            raise KeyboardInterrupt

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Give SIGINT back."""
        if self._previous is not None:
            signal.signal(signal.SIGINT, self._previous)
            self._previous = None

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Give SIGINT back after a failure too."""
        self.teardown(trainer, pl_module, "fit")

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self._received:
            raise KeyboardInterrupt
        self._received = True
