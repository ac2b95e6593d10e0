"""What a run prints and how fast it is."""

import sys
import time
from contextlib import redirect_stdout
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import TQDMProgressBar
from lightning.pytorch.callbacks.progress.tqdm_progress import Tqdm

from fewstep.training.data_modules import Batch
from fewstep.training.module import TrainingModule, announce


class StepBar(TQDMProgressBar):
    """Lightning's bar, for training steps only, on stderr."""

    def init_train_tqdm(self) -> Tqdm:
        """The bar."""
        with redirect_stdout(sys.stderr):
            return super().init_train_tqdm()

    def init_validation_tqdm(self) -> Tqdm:
        """No bar."""
        return Tqdm(disable=True)

    init_sanity_tqdm = init_validation_tqdm


class Monitor(Callback):
    """Prints what is trained on which data, and logs ``train/tokens_per_second`` or ``train/images_per_second``.

    Real tokens of all ranks since the last log over wall-clock time without validation. The count stays on the device
    and is read when it is logged: Lightning's ``ThroughputMonitor`` syncs the device at every step.
    """

    def __init__(self) -> None:
        self._count: torch.Tensor | int = 0
        self._started = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the summary and start counting."""
        assert isinstance(pl_module, TrainingModule)
        count = sum(parameter.numel() for parameter in pl_module.parameters() if parameter.requires_grad)
        data, start = pl_module.data, trainer.global_step
        size = data.batch_size * trainer.world_size * trainer.accumulate_grad_batches
        resumed = f", going on from step {start:,}" if start else ""
        lines = [f"{trainer.max_steps:,} steps of {size:,} {data.example_name}{resumed}", *data.report().splitlines()]
        if start == 0:
            lines += pl_module.report().splitlines()
        if not trainer.fast_dev_run:  # type: ignore[attr-defined]
            lines.append(f"writes {trainer.default_root_dir}")
        announce(trainer, f"==> {pl_module.stage_name}: {count:,} parameters, " + "\n    ".join(lines))
        self._restart()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave the time of a validation out."""
        self._restart()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Count, and log every ``log_every_n_steps``."""
        assert isinstance(pl_module, TrainingModule)
        self._count = self._count + pl_module.data.units_in(batch)
        every = trainer.log_every_n_steps * trainer.accumulate_grad_batches  # type: ignore[attr-defined]
        if every and (batch_idx + 1) % every == 0:
            count, seconds = int(self._count) * trainer.world_size, time.perf_counter() - self._started
            pl_module.log(f"train/{pl_module.data.unit}_per_second", count / max(seconds, 1e-9))
            self._restart()

    def _restart(self) -> None:
        self._count, self._started = 0, time.perf_counter()
