"""What was not finite in a step that a run left behind: the step again, and a look at all its numbers."""

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging
from torch import Tensor

from fewstep.training.command import FewstepCLI, run_training
from fewstep.training.module import Batch, TrainingModule, spread_nonfinite
from fewstep.training.replay_file import ReplayedStep, names_of_nonfinite, read_replay

ONE_PROCESS = ("--trainer.devices=1", "--trainer.num_nodes=1", "--trainer.strategy=auto", "--trainer.logger=false")
"""What changes of the settings: one process repeats the step, and leaves nothing behind."""


@dataclass(frozen=True)
class Replay:
    """A step once more (this project's definition).

    ``losses`` are those of its batches, ``terms`` names of the losses' terms that are not finite, ``examples`` pairs of
    a batch and the position in it of an example whose own loss is not finite, ``weights`` and ``gradients`` names of
    parameters and buffers that are not finite before and after, of ``num_weights`` and ``num_gradients``.
    """

    step: int
    rank: int
    losses: tuple[float, ...]
    terms: tuple[str, ...]
    examples: tuple[tuple[int, int], ...]
    weights: tuple[str, ...]
    gradients: tuple[str, ...]
    num_weights: int
    num_gradients: int

    @property
    def is_finite(self) -> bool:
        """Whether everything is finite now."""
        return not (self.terms or self.examples or self.weights or self.gradients)

    def lines(self) -> list[str]:
        """What was found, for people."""
        losses = ", ".join(f"{loss:g}" for loss in self.losses)
        found = [f"step {self.step} of process {self.rank}: loss {losses}"]
        for what, names, total in (
            ("weights", self.weights, self.num_weights),
            ("gradients", self.gradients, self.num_gradients),
        ):
            listed = f": {', '.join(names[:5])}{', ...' if len(names) > 5 else ''}" if names else ""
            found.append(f"{what} that are not finite: {len(names)} of {total}{listed}")
        found.append(f"terms of the loss that are not finite: {', '.join(self.terms) or 'none'}")
        places = ", ".join(f"{batch}:{row}" for batch, row in self.examples[:10])
        found.append(f"examples whose loss is not finite (batch:position): {places or 'none'}")
        if self.is_finite:
            found.append("everything is finite this time: another device, precision or version than in training?")
        return found


class _Replayed(Exception):
    """Leaves the trainer when the step is done."""


class _ReplayStep(Callback):
    """Does the step of ``recorded`` in place of the first one of a run that goes on from it."""

    def __init__(self, recorded: ReplayedStep) -> None:
        self.recorded = recorded
        self.result: Replay | None = None

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Batch, batch_idx: int) -> None:
        """Forward and backward of the recorded batches, in the run's precision."""
        assert isinstance(pl_module, TrainingModule)
        state = dict(pl_module.state_dict())
        weights = names_of_nonfinite(state)
        losses: list[float] = []
        terms: dict[str, None] = {}
        examples: list[tuple[int, int]] = []
        count = len(self.recorded.batches)
        for number, recorded in enumerate(self.recorded.batches):
            moved = {name: value.to(pl_module.device) for name, value in recorded.items()}
            generator = pl_module.step_generator(self.recorded.number * count + number, self.recorded.ranks)
            with trainer.precision_plugin.train_step_context():
                output = pl_module.batch_loss(moved, generator, held_out=False)
                loss = spread_nonfinite(output.loss) / count
            losses.append(float(output.loss))
            terms.update(dict.fromkeys(names_of_nonfinite(dict(output.terms))))
            rows = (~torch.isfinite(output.per_example)).nonzero().flatten().tolist()
            examples += [(number, row) for row in rows]
            _scaled(trainer, loss).backward()
        gradients: dict[str, Any] = {
            name: weight.grad for name, weight in pl_module.named_parameters() if weight.grad is not None
        }
        self.result = Replay(
            self.recorded.number,
            self.recorded.rank,
            tuple(losses),
            tuple(terms),
            tuple(examples),
            weights,
            names_of_nonfinite(gradients),
            len(state),
            len(gradients),
        )
        raise _Replayed


def _scaled(trainer: Trainer, loss: Tensor) -> Tensor:
    """The loss as float16 training scales it, so that what overflows there overflows here."""
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    return loss if scaler is None else scaler.scale(loss)


class _ReplayCLI(FewstepCLI):
    """The run's model and data with nothing around them but the weight average, which a checkpoint is read with."""

    step: _ReplayStep

    def _writes(self) -> bool:
        return False

    def instantiate_trainer(self) -> Trainer:  # type: ignore[override]
        trainer = super().instantiate_trainer()
        averaging = [item for item in trainer.callbacks if isinstance(item, EMAWeightAveraging)]  # type: ignore[attr-defined]
        trainer.callbacks = [*averaging, self.step]  # type: ignore[attr-defined]
        return trainer


def replay(file: Path, accelerator: str = "auto") -> Replay:
    """Do the step in ``file`` again, on ``accelerator`` (Lightning's name of it); nothing is written.

    Raises ``UserError`` where the file holds no step, or where the run's data or base model are gone.
    """
    step = _ReplayStep(read_replay(file))
    command = type("_ReplayCLI", (_ReplayCLI,), {"step": step})
    descriptor, settings = tempfile.mkstemp(suffix=".yaml")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
            stream.write(step.recorded.settings)
        arguments = ["fit", "--config", settings, f"--ckpt_path={file}", *ONE_PROCESS]
        run_training([*arguments, f"--trainer.accelerator={accelerator}", "--trainer.num_sanity_val_steps=0"], command)
    except _Replayed:
        pass
    finally:
        os.unlink(settings)
    assert step.result is not None
    return step.result
