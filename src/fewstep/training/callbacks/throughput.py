"""Tokens per second."""

import time
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer


class Throughput(Callback):
    """Logs ``train/tokens_per_second``: real tokens of all processes since the last log, over wall-clock time.

    Time spent in validation is left out. Tokens are counted where the batch lies and read when they are logged, so that
    the processor does not wait for the accelerator at every step.
    """

    def __init__(self) -> None:
        self._tokens: torch.Tensor | int = 0
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
        self._tokens = self._tokens + batch["mask"].sum()
        every = trainer.log_every_n_steps * trainer.accumulate_grad_batches  # type: ignore[attr-defined]
        if every and (batch_idx + 1) % every == 0:
            tokens = int(self._tokens) * trainer.world_size
            pl_module.log("train/tokens_per_second", tokens / max(time.perf_counter() - self._started, 1e-9))
            self._restart()
