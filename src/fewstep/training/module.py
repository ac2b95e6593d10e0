"""What all training runs share: exact randomness, optimizer, logging, whole models in checkpoints."""

from typing import Any, ClassVar

import torch
from lightning import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig

from fewstep.errors import UserError
from fewstep.model import SavedModel
from fewstep.shapes import example_generators
from fewstep.storage import CHECKPOINT_KEY, state_dict_mismatch
from fewstep.training.optimizer import OptimizerSettings
from fewstep.training.step_data import StepDataModule
from fewstep.types import LossOutput

MAX_PROCESSES = 2**20
"""Streams of random numbers that a seed has, so that neighbouring seeds share none."""

Batch = dict[str, torch.Tensor]


class TrainingModule(LightningModule):
    """Base of everything that ``fewstep train`` trains, of text or not.

    A subclass names itself (``stage_name``), the data that it takes (``data_class``), what it leaves
    (``saved_class``) and what it counts (``unit``), and gives ``data``, ``batch_loss``, ``units_in``, ``saved_model``
    and ``checkpoint_entry``. A batch holds ``index`` (B,), the rows of the train split, beside its content.

    All randomness of a batch comes from a generator that is a pure function of the seed and of the batch's number in
    the whole run, so a resumed run repeats an uninterrupted one, and several processes draw what one would that
    accumulates as many batches.
    """

    stage_name: ClassVar[str] = ""
    data_class: ClassVar[type[StepDataModule]] = StepDataModule
    saved_class: ClassVar[type[SavedModel]] = SavedModel
    unit: ClassVar[str] = "examples"

    def __init__(self, optimizer: OptimizerSettings, seed: int) -> None:
        super().__init__()
        self.optimizer_settings = optimizer
        self.seed = seed
        self.step_was_skipped = False
        """Whether the last optimizer step changed nothing, see :class:`fewstep.training.callbacks.SkipNonFinite`."""

    @property
    def data(self) -> StepDataModule:
        """The data module that the module was built for."""
        raise self._undefined("data")

    def batch_loss(self, batch: Batch, generator: torch.Generator, *, held_out: bool) -> LossOutput:
        """Loss of one batch; ``held_out`` tells that its rows are not of the train split."""
        raise self._undefined("batch_loss")

    def units_in(self, batch: Batch) -> torch.Tensor | int:
        """How many of ``unit`` a batch holds."""
        return len(batch["index"])

    def report(self) -> str:
        """What there is to say before the first step, in lines; nothing by default."""
        return ""

    def saved_model(self) -> SavedModel:
        """The model as it is now."""
        raise self._undefined("saved_model")

    def checkpoint_entry(self) -> dict[str, Any]:
        """What a checkpoint carries beside the trained weights, see :func:`fewstep.storage.checkpoint_entry`."""
        raise self._undefined("checkpoint_entry")

    def _undefined(self, name: str) -> UserError:
        return UserError(f"{type(self).__name__} defines no {name}: derive it from a class that does")

    def step_generator(self, step: int, ranks: tuple[int, int] | None = None) -> torch.Generator:
        """CPU generator of this process's batch ``step``: no two batches of a run share one. Validation uses negative
        numbers. Batch i in rank r of W processes has that of batch i W + r in a process alone; ``ranks`` (r, W) are
        this run's where they are not given."""
        stream = 2 * self.seed * MAX_PROCESSES + (step < 0)
        rank, world_size = self.data.ranks() if ranks is None else ranks
        (generator,) = example_generators(stream, (step if step >= 0 else -1 - step) * world_size + rank, 1)
        return generator

    def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        """One optimisation step; logs ``train/loss`` and the objective's terms."""
        step = self.global_step * self.trainer.accumulate_grad_batches
        step += batch_idx % self.trainer.accumulate_grad_batches
        output = self.batch_loss(batch, self.step_generator(step), held_out=False)
        if self._is_logged():
            self.log("train/loss", output.loss, prog_bar=True)
            self.log_dict({f"train/{name}": value for name, value in output.terms.items()})
        return spread_nonfinite(output.loss)

    def _is_logged(self) -> bool:
        """Whether the optimizer step that is under way is one that the trainer writes to its loggers."""
        every = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        return every > 0 and (self.global_step + 1) % every == 0

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Loss on held-out data with the same noise at every validation; logs ``val/loss``."""
        output = self.batch_loss(batch, self.step_generator(-1 - batch_idx), held_out=True)
        size = self.data.held_out_weight(batch_idx, len(batch["index"]))
        self.log("val/loss", output.loss, prog_bar=True, batch_size=size, sync_dist=True)
        terms = {f"val/{name}": value for name, value in output.terms.items()}
        self.log_dict(terms, batch_size=size, sync_dist=True)

    def setup(self, stage: str) -> None:
        """Refuse weights in half precision: whitening, times and paths are float32, and would not meet them."""
        precision = str(self.trainer.precision)
        if precision in ("bf16-true", "16-true"):
            mixed = precision.replace("true", "mixed")
            raise UserError(f"trainer.precision is {precision}: the weights stay float32 here; give {mixed} or 32-true")

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """AdamW with its schedule over the whole run. Raises ``UserError`` where the trainer has no ``max_steps``."""
        if self.trainer.max_steps < 1:
            raise UserError(
                f"trainer.max_steps is {self.trainer.max_steps}: training is counted in steps, not epochs; give a "
                "number of at least 1"
            )
        optimizer, schedule = self.optimizer_settings.build(self.parameters(), self.trainer.max_steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Log the gradient norm before clipping, and the learning rate of this step."""
        if self._is_logged():
            gradients = [p.grad for p in self.parameters() if p.grad is not None]
            # A skipped step has none any more; left out, the last one's norm would be written again.
            self.log("train/grad_norm", torch.nn.utils.get_total_norm(gradients) if gradients else torch.nan)
            self.log("train/learning_rate", float(optimizer.param_groups[0]["lr"]))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what makes the checkpoint a whole model, and the name of the stage."""
        checkpoint[CHECKPOINT_KEY] = {**self.checkpoint_entry(), "stage": self.stage_name}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint of another stage, or of another network, before its tensors are copied."""
        stage = checkpoint.get(CHECKPOINT_KEY, {}).get("stage")
        if stage != self.stage_name:
            raise UserError(f"the checkpoint is of stage {stage!r}, but this run trains {self.stage_name!r}")
        problems = state_dict_mismatch(self.state_dict(), checkpoint["state_dict"])
        if problems:
            raise UserError(
                f"the checkpoint does not fit the model of this run: {problems}; give the settings it was trained with"
            )


def spread_nonfinite(loss: torch.Tensor) -> torch.Tensor:
    """``loss`` as it is where it is finite; else NaN whose gradient is NaN as well.

    A loss that is not finite can have a finite gradient. With this its gradients tell, and after they are summed over
    processes they tell every process, without a message or a look at the loss (this project's definition).
    """
    return loss * torch.where(torch.isfinite(loss), torch.ones_like(loss), torch.full_like(loss, torch.nan))
