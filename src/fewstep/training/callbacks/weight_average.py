"""The running average of the weights, all tensors in one call."""

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging
from torch.optim.swa_utils import get_ema_multi_avg_fn


class WeightAverage(EMAWeightAveraging):
    """Lightning's exponential moving average of the weights, all tensors in one call.

    Lightning's own goes tensor by tensor with two temporaries each; the average is the same within float error.
    """

    def __init__(
        self,
        device: torch.device | str | int | None = None,
        use_buffers: bool = True,
        decay: float = 0.999,
        update_every_n_steps: int = 1,
        update_starting_at_step: int | None = None,
        update_starting_at_epoch: int | None = None,
    ) -> None:
        super().__init__(
            device, use_buffers, decay, update_every_n_steps, update_starting_at_step, update_starting_at_epoch
        )
        # What Lightning hands to torch's AveragedModel, which takes one of the two functions.
        self._kwargs = {"multi_avg_fn": get_ema_multi_avg_fn(decay)}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Make the average. Its counter, which every update looks at, stays where that makes nobody wait."""
        super().setup(trainer, pl_module, stage)
        if self._average_model is not None:
            self._average_model.n_averaged = self._average_model.n_averaged.cpu()
