"""Tokens per second."""

import time
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer


class Throughput(Callback):
    """Logs ``train/tokens_per_second``: real tokens of all processes since the last log, over wall-clock time.

    Time spent in validation is left out.
    """

    def __init__(self) -> None:
        self._tokens = 0
        self._started = 0.0

    def _restart(self) -> None:
        self._tokens, self._started = 0, time.perf_counter()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start counting."""
        self._restart()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start again after a validation."""
        self._restart()

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: dict[str, torch.Tensor],
        batch_idx: int,
    ) -> None:
        """Count, and log every ``log_every_n_steps``."""
        self._tokens += int(batch["mask"].sum())
        if (batch_idx + 1) % trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            seconds = time.perf_counter() - self._started
            pl_module.log("train/tokens_per_second", self._tokens * trainer.world_size / max(seconds, 1e-9))
            self._restart()
