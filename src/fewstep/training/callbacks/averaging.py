"""Averaged weights: kept up to date during training, exported as a model folder at the end."""

from pathlib import Path

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging
from torch.optim.swa_utils import get_ema_multi_avg_fn

from fewstep.training.module import TrainingModule, announce


class WeightAverage(WeightAveraging):
    """Exponential moving average of weights and buffers, updated after every optimizer step.

    All tensors in one call: Lightning's ``EMAWeightAveraging`` goes tensor by tensor, at three times the cost on small
    networks.
    """

    def __init__(self, decay: float = 0.995) -> None:
        super().__init__(multi_avg_fn=get_ema_multi_avg_fn(decay))

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Create the average. Its update counter stays on the CPU, where reading it needs no device sync."""
        super().setup(trainer, pl_module, stage)
        if self._average_model is not None:
            self._average_model.n_averaged = self._average_model.n_averaged.cpu()

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Move the average to the weights: Lightning creates it before it moves the module to its device."""
        assert self._average_model is not None
        self._average_model.module.to(pl_module.device)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Nothing: it is not called if no step was left to train."""

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Copy the average into the weights."""
        super().on_train_end(trainer, pl_module)


class ExportModel(Callback):
    """Writes the model to ``folder`` at the end of a run, replacing an earlier export; also if no step was left to
    train. Listed after :class:`WeightAverage`.
    """

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save on rank 0 and print where."""
        assert isinstance(pl_module, TrainingModule)
        if trainer.is_global_zero and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            pl_module.saved_model().save_pretrained(self.folder, overwrite=True)
            steps = f"{trainer.global_step:,} steps"
            announce(trainer, f"==> {pl_module.stage_name}: done after {steps}; model in {self.folder}")
