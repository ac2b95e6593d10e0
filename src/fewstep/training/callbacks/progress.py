"""One bar for a stage."""

import sys
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from tqdm import tqdm

SHOWN = ("train/loss", "val/loss", "val/token_accuracy", "val/r_squared")
"""Metrics that stand behind the bar, as far as the stage logs them."""


class StepProgress(ProgressBar):
    """Optimizer steps done of all steps, time left, seconds a step, and the latest loss.

    The loss is read every ``log_every_n_steps`` steps only, because reading it makes the processor wait for the
    accelerator. Where stderr is no terminal the bar is written every ten seconds, so that a log file stays short.
    """

    def __init__(self) -> None:
        super().__init__()
        self._bar: tqdm | None = None
        self._enabled = True

    def disable(self) -> None:
        """Show nothing: Lightning asks for it in every process but the first."""
        self._enabled = False

    def enable(self) -> None:
        """Show the bar again."""
        self._enabled = True

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin the bar where the run stands."""
        interval = 0.2 if sys.stderr.isatty() else 10.0
        self._bar = tqdm(
            desc=str(getattr(pl_module, "stage_name", "train")),
            total=trainer.max_steps,
            initial=trainer.global_step,
            unit="step",
            mininterval=interval,
            maxinterval=max(10.0, interval),
            dynamic_ncols=True,
            disable=not self._enabled,
        )

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Move on."""
        if self._bar is None:
            return
        every = trainer.log_every_n_steps or 1  # type: ignore[attr-defined]
        if trainer.global_step % every == 0:
            self._show_metrics(trainer)
        self._bar.update(trainer.global_step - self._bar.n)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show the new validation metrics."""
        self._show_metrics(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave the finished bar on the screen."""
        self._close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave the bar as it is."""
        self._close()

    def print(self, *args: Any, sep: str = " ") -> None:
        """Write a line above the bar, to stdout."""
        if self._enabled:
            tqdm.write(sep.join(map(str, args)), file=sys.stdout)

    def _show_metrics(self, trainer: Trainer) -> None:
        if self._bar is None or self._bar.disable:
            return
        metrics = trainer.progress_bar_metrics
        shown = {name: f"{metrics[name]:.3f}" for name in SHOWN if name in metrics}
        self._bar.set_postfix(shown, refresh=False)

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None
