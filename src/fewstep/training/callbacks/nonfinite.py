"""Skip optimizer steps whose loss or gradient is NaN or infinite."""

from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from torch.optim import Optimizer

from fewstep.errors import UserError
from fewstep.training.data_modules import Batch
from fewstep.training.module import TrainingModule, announce


class SkipNonFinite(Callback):
    """Skips optimizer steps whose loss or gradient is not finite, and ends the run after ``max_in_a_row`` of them.

    A skipped step changes no weight and no optimizer state; its data count as seen, and schedule and weight average go
    on. ``train/skipped_steps`` counts them. When the run ends, rank 0 and every rank whose own loss is not finite save
    the batches of the last step to ``folder/step-N-rank-R.pt`` (``torch.load`` reads it).

    After the all-reduce every rank sees the same gradients, so all skip together. Cost per step: one gradient norm and
    one device sync, as a ``GradScaler`` has.
    """

    def __init__(self, folder: str, max_in_a_row: int = 20) -> None:
        if max_in_a_row < 1:
            raise ValueError(f"nonfinite.max_in_a_row is {max_in_a_row}: expected a whole number of at least 1")
        self.folder = Path(folder)
        self.max_in_a_row = max_in_a_row
        self.skipped = 0
        self.in_a_row = 0
        self._batches: list[Batch] = []
        self._losses: list[torch.Tensor] = []

    def state_dict(self) -> dict[str, Any]:
        """Both counts, for the checkpoint."""
        return {"skipped": self.skipped, "in_a_row": self.in_a_row}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore both counts."""
        self.skipped, self.in_a_row = state_dict["skipped"], state_dict["in_a_row"]

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Batch, batch_idx: int) -> None:
        """Remember the batches of the current optimizer step."""
        if batch_idx % trainer.accumulate_grad_batches == 0:
            self._batches, self._losses = [], []
        self._batches.append(batch)

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: torch.Tensor) -> None:
        """Remember this rank's own loss: after the all-reduce nothing else says whose batch it was."""
        self._losses.append(loss.detach())

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Drop the gradients if one is not finite, so that the optimizer has nothing to do.

        Raises ``UserError`` at the last of too many skipped steps in a row.
        """
        assert isinstance(pl_module, TrainingModule)
        pl_module.step_was_skipped = not gradients_are_finite(pl_module)
        if not pl_module.step_was_skipped:
            self.in_a_row = 0
            return
        self.skipped += 1
        self.in_a_row += 1
        if self.in_a_row >= self.max_in_a_row:
            file = self._save_batches(trainer)
            raise UserError(
                f"loss or gradient not finite at step {trainer.global_step}, the last of {self.in_a_row} such steps in "
                f"a row; the weights are those from before them, the batches are in {file}: lower the learning rate, "
                "or use bf16 or float32 in place of fp16"
            )
        optimizer.zero_grad(set_to_none=True)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Log the number of skipped steps."""
        every = trainer.log_every_n_steps * trainer.accumulate_grad_batches  # type: ignore[attr-defined]
        if every and (batch_idx + 1) % every == 0:
            pl_module.log("train/skipped_steps", float(self.skipped))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the number of skipped steps if there were any."""
        if self.skipped:
            announce(trainer, f"==> {self.skipped:,} steps were skipped: their loss or gradient was not finite")

    def _save_batches(self, trainer: Trainer) -> Path:
        file = self.folder / f"step-{trainer.global_step}-rank-{trainer.global_rank}.pt"
        if trainer.is_global_zero or not all(bool(torch.isfinite(loss)) for loss in self._losses):
            self.folder.mkdir(parents=True, exist_ok=True)
            torch.save([{name: value.cpu() for name, value in batch.items()} for batch in self._batches], file)
        trainer.strategy.barrier()  # a rank that ends early would take the others down before they have written
        return file


def gradients_are_finite(module: torch.nn.Module) -> bool:
    """Whether the norm of all gradients is finite: one device sync."""
    gradients = [parameter.grad for parameter in module.parameters() if parameter.grad is not None]
    return not gradients or bool(torch.isfinite(torch.nn.utils.get_total_norm(gradients)))
