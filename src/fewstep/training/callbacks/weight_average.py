"""The running average of the weights, all tensors in one call."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

from fewstep.training.sharding import is_sharded, load_whole_state, parts_here, whole_state
from fewstep.training.strategies import ShardedStrategy


class WeightAverage(EMAWeightAveraging):
    """Lightning's exponential moving average of the weights, all tensors in one call.

    Lightning's own goes tensor by tensor with two temporaries each; the average is the same within float error. Where
    the weights are spread over processes (:class:`~fewstep.training.strategies.ShardedStrategy`), so is the average.
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
        self._kwargs = {"multi_avg_fn": partial(average_parts, get_ema_multi_avg_fn(decay))}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Make the average. Its counter, which every update looks at, stays where that makes nobody wait."""
        super().setup(trainer, pl_module, stage)
        if self._average_model is not None:
            self._average_model.n_averaged = self._average_model.n_averaged.cpu()

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Bring the average to where the weights are by now, in parts where they are. Lightning made it earlier, where
        they were then, so that every update would have gone through the processor's memory."""
        assert self._average_model is not None
        if isinstance(trainer.strategy, ShardedStrategy):
            trainer.strategy.shard(self._average_model.module)
        elif self._device is None:
            self._average_model.module.to(pl_module.device)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Put the average in the place of the weights, and those beside it, all whole."""
        super().on_save_checkpoint(trainer, pl_module, checkpoint)
        if self._average_model is not None and is_sharded(self._average_model):
            checkpoint["state_dict"] = whole_state(self._average_model.module)

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Take average and weights back."""
        average = self._average_model
        if average is None or not is_sharded(average) or "averaging_state" not in checkpoint:
            super().on_load_checkpoint(trainer, pl_module, checkpoint)
            return
        load_whole_state(average.module, checkpoint["state_dict"])
        load_whole_state(pl_module, checkpoint["current_model_state"])
        average.n_averaged.copy_(checkpoint["averaging_state"]["n_averaged"])


def average_parts(
    average: Callable[[list[Tensor], list[Tensor], Tensor], None], old: list[Tensor], new: list[Tensor], count: Tensor
) -> None:
    """``average`` of what this process holds: it goes element by element, so nobody need know of the other parts."""
    average(parts_here(old), parts_here(new), count)
