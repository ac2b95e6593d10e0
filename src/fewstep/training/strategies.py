"""Ways of Lightning to train in several processes: which fit here, and the one that spreads the weights over them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.strategies import ModelParallelStrategy
from packaging.version import Version
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_optimizer_state_dict
from torch.optim import Optimizer

from fewstep.errors import UserError
from fewstep.training.sharding import load_whole_state, shard, share_buffers
from fewstep.training.stage import Stage
from fewstep.weights import load_checkpoint

FSDP = "fsdp"
"""The name of :class:`ShardedStrategy` as a ``trainer.strategy``."""
FIRST_ON_CPU = Version("2.7")
"""The torch that shards on a processor."""
SHARDING = ("fsdp", "deepspeed", "modelparallel", "xla_fsdp")
"""Beginnings of the names of Lightning's own that keep only a part of the weights in a process."""
ENTRIES = ("training_step", "validation_step")
"""Methods of a stage that ask for its weights."""


def check_strategy(strategy: Any, module: type[LightningModule], average_device: Any) -> None:
    """Raise ``UserError`` for a ``trainer.strategy`` (name, or settings with a ``class_path``) that does not fit.

    One that shards the weights in another way than :class:`ShardedStrategy` would leave averages, checkpoints and
    samples in parts; that one takes stages of text models, and keeps the average (``ema.device``) beside the weights.
    """
    name = str(strategy if isinstance(strategy, str) else getattr(strategy, "class_path", ""))
    if name == FSDP:
        if not issubclass(module, Stage):
            raise UserError(f"trainer.strategy is {name}, but {module.__name__} trains no text model: give ddp")
        if average_device is not None:
            raise UserError(
                f"ema.device is {average_device}, but fsdp keeps the average where the weights are: leave it out, or "
                "give ddp"
            )
    elif name.rpartition(".")[2].lower().startswith(SHARDING):
        raise UserError(
            f"trainer.strategy is {name}: averages, checkpoints and samples would lose weights with it; give {FSDP}, "
            "which spreads the weights over the processes, or ddp (docs/scale.md)"
        )


class ShardedStrategy(ModelParallelStrategy):
    """``trainer.strategy fsdp``: a process keeps its part of each weight, gradient, moment and average.

    By torch's ``fully_shard`` (:func:`fewstep.training.sharding.shard`) over all processes, on accelerators and on
    processors; Lightning's own ``fsdp`` is the older one, for GPUs only. Checkpoints are whole files, the same as those
    of one process, and a run goes on from them under any strategy and number of processes of the same global batch.
    For the stages of a text model (:func:`check_strategy`). Raises ``UserError`` on a processor before torch 2.7.
    """

    def __init__(self) -> None:
        super().__init__(tensor_parallel_size=1, save_distributed_checkpoint=False)

    @property
    def lightning_restore_optimizer(self) -> bool:
        """True: the trainer hands over the optimizer's state as it does elsewhere."""
        return True

    def setup_environment(self) -> None:
        """Start the process group, all of which share the weights."""
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()

    def setup(self, trainer: Trainer) -> None:
        """Spread the weights, then make the optimizer over the parts."""
        assert isinstance(self.lightning_module, Stage)
        if self.root_device.type == "cpu" and Version(torch.__version__) < FIRST_ON_CPU:
            raise UserError(f"trainer.strategy is {FSDP}: torch {torch.__version__} can do that on GPUs only; give ddp")
        self.shard(self.lightning_module)
        # Past ModelParallelStrategy's own, which wants the module itself to have done that.
        super(ModelParallelStrategy, self).setup(trainer)

    def shard(self, module: nn.Module) -> None:
        """Leave this process its part of each weight of a stage, or of a copy of one."""
        shard(module, self.device_mesh["data_parallel"], entries=ENTRIES)

    def training_step(self, *args: Any) -> Any:
        """A step from the first process's buffers, as under DDP."""
        assert self.lightning_module is not None
        share_buffers(self.lightning_module)
        return super().training_step(*args)

    def load_checkpoint(self, checkpoint_path: str | Path, weights_only: bool | None = None) -> dict[str, Any]:
        """Read a whole checkpoint, of any strategy. Raises ``UserError`` where it cannot be read."""
        return load_checkpoint(Path(self.broadcast(checkpoint_path)))

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Take this process's parts of the whole weights."""
        assert self.lightning_module is not None
        load_whole_state(self.lightning_module, checkpoint["state_dict"])

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Take this process's parts of the optimizer's whole state, whose tensors are numbered as in one process."""
        assert self.lightning_module is not None
        names = {parameter: name for name, parameter in self.lightning_module.named_parameters()}
        for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            named = _named_state(state, optimizer, names)
            options = StateDictOptions(full_state_dict=True)
            set_optimizer_state_dict(self.lightning_module, optimizer, named, options=options)


def _named_state(state: dict[str, Any], optimizer: Optimizer, names: dict[nn.Parameter, str]) -> dict[str, Any]:
    """An optimizer's saved ``state`` with the names of its tensors in place of their numbers."""
    name_of: dict[int, str] = {}
    groups = []
    for saved, group in zip(state["param_groups"], optimizer.param_groups, strict=True):
        own = [names[parameter] for parameter in group["params"]]
        name_of.update(zip(saved["params"], own, strict=True))
        groups.append({**saved, "params": own})
    return {"state": {name_of[number]: moments for number, moments in state["state"].items()}, "param_groups": groups}
