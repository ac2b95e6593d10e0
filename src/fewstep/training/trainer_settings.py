"""Which of Lightning's settings work here: what cannot is refused before a folder is created."""

import os
import traceback
from pathlib import Path
from typing import Any

import lightning
import torch
from jsonargparse import Namespace
from lightning import Trainer
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.fabric.plugins.environments import LightningEnvironment
from lightning.pytorch import callbacks as lightning_callbacks
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from fewstep.errors import UserError
from fewstep.registry import import_attribute

SHARDING = ("fsdp", "deepspeed", "modelparallel", "xla_fsdp")
"""Prefixes of Lightning's strategies that keep a part of the weights in each process."""
PRECISIONS = ("32-true", "16-mixed", "bf16-mixed")
"""Whitening, times, paths and the average of the weights are float32."""
REPLACED_CALLBACKS = (
    lightning_callbacks.BaseFinetuning,
    lightning_callbacks.BatchSizeFinder,
    lightning_callbacks.GradientAccumulationScheduler,
    lightning_callbacks.LearningRateFinder,
    lightning_callbacks.ModelPruning,
    lightning_callbacks.StochasticWeightAveraging,
    lightning_callbacks.WeightAveraging,
)
LEAST = {
    "max_steps": 1,
    "val_check_interval": 1e-9,
    "gradient_clip_val": 0,
    "accumulate_grad_batches": 1,
    "log_every_n_steps": 0,
}
EXPECTED: dict[str, tuple[tuple[Any, ...], str]] = {
    "max_epochs": ((None, -1), "steps are counted, not epochs: give trainer.max_steps"),
    "check_val_every_n_epoch": ((None, 1), "steps are counted, not epochs: give trainer.val_check_interval"),
    "overfit_batches": ((0,), "every step has new batches: to train on little text, give data.max_documents"),
    "default_root_dir": ((None,), "give run_dir"),
    "profiler": ((None, "simple", "advanced", "pytorch"), "expected simple, advanced, pytorch, or a class"),
}
"""Values of settings, and what else to do. Lightning takes others too, and then does something else."""


def check_trainer(trainer: Namespace) -> None:
    """Raise ``UserError`` for settings that Lightning accepts and does otherwise, or refuses without naming them."""
    for name, least in LEAST.items():
        value = 1 if name == "max_steps" and trainer.fast_dev_run else trainer[name]
        if isinstance(value, int | float) and value < least:
            raise UserError(f"trainer.{name} is {value}: expected at least {least}")
    for name, (allowed, advice) in EXPECTED.items():
        if trainer[name] not in allowed and not isinstance(trainer[name], Namespace):
            raise UserError(f"trainer.{name} is {trainer[name]}: {advice}")
    if not trainer.fast_dev_run:
        _check_passes(trainer)
    callbacks = trainer.callbacks or []
    for callback in callbacks if isinstance(callbacks, list) else [callbacks]:
        given = import_attribute(callback.class_path, "trainer.callbacks")
        if issubclass(given, REPLACED_CALLBACKS):
            raise UserError(
                f"trainer.callbacks has {given.__name__}: leave it out; here are data.batch_size, ema.decay, "
                "model.optimizer.learning_rate and trainer.accumulate_grad_batches"
            )
    strategy = str(getattr(trainer.strategy, "class_path", trainer.strategy))
    if strategy.rpartition(".")[2].lower().startswith(SHARDING):
        raise UserError(
            f"trainer.strategy is {strategy}: every process keeps whole weights here; give ddp (docs/howto/cluster.md)"
        )


def _check_passes(trainer: Namespace) -> None:
    """A pass is ``limit_train_batches`` long, by default the whole run; an optimizer step must not cross its end."""
    limit, accumulated = trainer.limit_train_batches, trainer.accumulate_grad_batches
    whole = trainer.max_steps * accumulated
    batches = whole if limit is None else limit if isinstance(limit, int) else int(limit * whole)
    if batches < 1 or batches % accumulated:
        raise UserError(
            f"trainer.limit_train_batches is {limit}, which is {batches} batches in a pass: expected a multiple of "
            f"trainer.accumulate_grad_batches, {accumulated}"
        )


def check_built(trainer: Trainer) -> None:
    """Raise ``UserError`` for a trainer whose precision, checkpoint writer or nodes do not work, however chosen."""
    if trainer.precision not in PRECISIONS:
        raise UserError(
            f"trainer.precision is {trainer.precision}: the weights stay float32 here; give {', '.join(PRECISIONS)}"
        )
    if type(writer := trainer.strategy.checkpoint_io) is not TorchCheckpointIO:
        raise UserError(
            f"trainer.plugins has {type(writer).__name__}: leave it out, checkpoints are written by our own"
        )
    environment = getattr(trainer.strategy, "cluster_environment", None)
    if trainer.num_nodes > 1 and isinstance(environment, LightningEnvironment) and "MASTER_ADDR" not in os.environ:
        raise UserError(
            f"trainer.num_nodes is {trainer.num_nodes}, but no scheduler started this process and MASTER_ADDR is not "
            "set: start one process per node by torchrun or SLURM (docs/howto/cluster.md)"
        )


def emulates_bfloat16() -> bool:
    """Whether this machine has no accelerator and a CPU that computes bfloat16 in software, slower than float32."""
    known: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()  # earlier releases of torch do not tell
    is_native = known.get("avx512_bf16") or known.get("amx_bf16") or known.get("architecture") != "x86_64"
    return not torch.accelerator.is_available() and not is_native


def is_refusal(error: Exception) -> bool:
    """Whether Lightning itself raised ``error``, which then is about a setting that it cannot use here."""
    if isinstance(error, MisconfigurationException):
        return True
    frames = traceback.extract_tb(error.__traceback__)
    inside = bool(frames) and Path(lightning.__file__).parent in Path(frames[-1].filename).parents
    return inside and not isinstance(error, OSError | MemoryError)
