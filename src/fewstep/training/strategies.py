"""Which ways of Lightning to train in several processes fit here."""

from typing import Any

from fewstep.errors import UserError

SHARDING = ("fsdp", "deepspeed", "modelparallel", "xla_fsdp")
"""Beginnings of the names of those that keep only a part of the weights in a process."""


def check_strategy(strategy: Any) -> None:
    """Raise ``UserError`` for a ``trainer.strategy`` (name, or settings with a ``class_path``) that shards the weights.

    Averages, checkpoints, samples and diagnostics read whole weights in a process. Over shards the average would pair
    tensors of different shapes, and what the first process alone does would wait for the others for ever.
    """
    name = str(strategy if isinstance(strategy, str) else getattr(strategy, "class_path", ""))
    if name.rpartition(".")[2].lower().startswith(SHARDING):
        raise UserError(
            f"trainer.strategy is {name}: weights must be whole in every process here, for their average, checkpoints "
            "and diagnostics; give ddp, with a smaller batch_size where memory is short (docs/scale.md)"
        )
