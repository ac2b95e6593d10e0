"""Tokens, or images, per second."""

import time
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer

from fewstep.training.module import TrainingModule


class Throughput(Callback):
    """Logs ``train/tokens_per_second``: real tokens of all processes since the last log, over wall-clock time.

    A module that counts something else gives its name: ``train/images_per_second``. Time spent in validation is left
    out. What is counted stays where the batch lies and is read when it is logged, so that the processor does not wait
    for the accelerator at every step.
    """

    def __init__(self) -> None:
        self._count: torch.Tensor | int = 0
        self._started = 0.0

    def _restart(self) -> None:
        self._count, self._started = 0, time.perf_counter()

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
        assert isinstance(pl_module, TrainingModule)
        self._count = self._count + pl_module.units_in(batch)
        every = trainer.log_every_n_steps * trainer.accumulate_grad_batches  # type: ignore[attr-defined]
        if every and (batch_idx + 1) % every == 0:
            count, seconds = int(self._count) * trainer.world_size, time.perf_counter() - self._started
            pl_module.log(f"train/{pl_module.unit}_per_second", count / max(seconds, 1e-9))
            self._restart()
