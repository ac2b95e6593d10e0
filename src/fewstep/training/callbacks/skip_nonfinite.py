"""A loss or gradient that is not finite never reaches the weights."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from torch.optim import Optimizer

from fewstep.errors import UserError
from fewstep.training.module import Batch, TrainingModule
from fewstep.training.replay_file import save_replay
from fewstep.training.sharding import total_norm


class SkipNonFinite(Callback):
    """Skips every optimizer step whose loss or gradient is NaN or infinite, and stops after too many in a row.

    A skipped step changes no weight and no state of the optimizer; its data count as seen, and the schedule and the
    weight average go on. ``train/skipped_steps`` is their number. After ``max_in_a_row`` of them the batch of the last
    one is written to ``folder`` for ``fewstep replay`` (that of the first process, and of those whose own loss is not
    finite), and the run ends with ``UserError``; a checkpoint from before the first of them stays.

    Every process looks at its own copy of the summed gradients, so all skip together (:func:`spread_nonfinite`). That
    costs a norm of the gradients a step, and on an accelerator one number read back a step, as a gradient scaler does.
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
        """The two counts, for a checkpoint."""
        return {"skipped": self.skipped, "in_a_row": self.in_a_row}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on counting."""
        self.skipped, self.in_a_row = state_dict["skipped"], state_dict["in_a_row"]

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Batch, batch_idx: int) -> None:
        """Hold the batches of the optimizer step that is under way."""
        if batch_idx % trainer.accumulate_grad_batches == 0:
            self._batches, self._losses = [], []
        self._batches.append(batch)

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: torch.Tensor) -> None:
        """Hold this process's own loss, which tells after the sum over processes whose batch it was."""
        self._losses.append(loss.detach())

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Take the gradients away where one of them is not finite: the optimizer then has nothing to do.

        Raises ``UserError`` at the last step of too many in a row.
        """
        assert isinstance(pl_module, TrainingModule)
        pl_module.step_was_skipped = not gradients_are_finite(pl_module.parameters())
        if not pl_module.step_was_skipped:
            self.in_a_row = 0
            return
        self.skipped += 1
        self.in_a_row += 1
        if self.in_a_row >= self.max_in_a_row:
            is_bad = not all(bool(torch.isfinite(loss)) for loss in self._losses)
            raise UserError(
                self._given_up(trainer.global_step, save_replay(self.folder, trainer, self._batches, is_bad))
            )
        optimizer.zero_grad(set_to_none=True)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Log how many steps were skipped, at logged steps."""
        every = trainer.log_every_n_steps * trainer.accumulate_grad_batches  # type: ignore[attr-defined]
        if every and (batch_idx + 1) % every == 0:
            pl_module.log("train/skipped_steps", float(self.skipped))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say how many steps were skipped, where some were."""
        if self.skipped:
            trainer.print(f"==> {self.skipped:,} steps were skipped: their loss or gradient was not finite")

    def _given_up(self, step: int, file: Path) -> str:
        return (
            f"loss or gradient are not finite at step {step}, the last of {self.in_a_row} such steps in a row: weights "
            f"and checkpoints are those from before them; fewstep replay {file} says what is not finite; lower the "
            "learning rate, or use bf16 or float32 in place of fp16"
        )


def gradients_are_finite(parameters: Iterable[torch.nn.Parameter]) -> bool:
    """Whether the norm of all gradients is finite; reads one number back from where they lie."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    return not gradients or bool(torch.isfinite(total_norm(gradients)))
