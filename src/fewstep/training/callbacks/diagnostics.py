"""Diagnostics during training: when to measure, and where the results go."""

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.trainer.states import TrainerFn

from fewstep.errors import UserError
from fewstep.locking import draft_of, put_in_place
from fewstep.training.module import TrainingModule, announce

if TYPE_CHECKING:
    from fewstep.diagnostics.result import Result, Row

FILE, PICTURES = "diagnostics.jsonl", "diagnostics"
STAGES = ("autoencoder", "flow", "head")
"""Stages that have measurements of their own."""


class Diagnostics(Callback):
    """Measures the averaged weights at every ``every_n_validations``-th validation and after the last step; 0: never.

    ``measurements`` are names of :data:`fewstep.evaluation.measurements.MEASUREMENTS` or dotted paths of one's own;
    None: those of the stage. Rank 0 measures a copy of the model on ``num_examples`` held-out blocks, at
    ``num_positions`` tokens in each, with the noise of ``seed``; training is not touched. Every value is logged as
    ``diag/NAME``. ``folder/diagnostics.jsonl`` gets a line with all results and intervals, ``folder/diagnostics/`` the
    latest figures, which wandb gets too; at the end the latest values are printed.

    Listed before :class:`.WeightAverage`, which takes the average out of the model when the validation epoch ends. A
    resumed run keeps the lines up to its first step. Raises ``UserError`` for a name that is no measurement.
    """

    def __init__(
        self,
        folder: str,
        num_examples: int = 32,
        num_positions: int = 2,
        seed: int = 0,
        every_n_validations: int = 1,
        measurements: list[str] | None = None,
    ) -> None:
        if num_examples < 2 or num_positions < 1 or every_n_validations < 0:
            raise ValueError(
                f"diagnostics.num_examples is {num_examples}, num_positions {num_positions}, every_n_validations "
                f"{every_n_validations}: expected at least 2, at least 1, and at least 0 (never)"
            )
        if measurements is not None:
            check_measurements(measurements)
        self.folder = Path(folder)
        self.num_examples = num_examples
        self.num_positions = num_positions
        self.seed = seed
        self.every_n_validations = every_n_validations
        self.measurements = measurements
        self._latest: tuple[Row, ...] = ()
        self._problem = ""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Drop the lines of steps that a resumed run repeats."""
        file = self.folder / FILE
        if trainer.is_global_zero and file.is_file():
            with file.open(encoding="utf-8") as stream:
                lines = [line for line in stream if line.endswith("\n")]
            lines = [line for line in lines if json.loads(line)["step"] <= trainer.global_step]
            with draft_of(file) as draft:
                draft.write_text("".join(lines), encoding="utf-8")
                put_in_place(draft, file)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure, log and write; not in the sanity check before training, and not in a trial run."""
        assert isinstance(pl_module, TrainingModule)
        if not self._is_due(trainer, pl_module):
            return
        values: dict[str, float] = {}
        if trainer.is_global_zero:
            results = self._measure(trainer, pl_module)
            self._latest = tuple(row for result in results for row in result.rows)
            values = {f"diag/{row.name}": row.estimate.value for row in self._latest if _is_finite(row)}  # type: ignore[misc]
            if results and trainer.state.fn == TrainerFn.FITTING:
                self._append(trainer.global_step, results)
                self._show(trainer, results)
        # The other ranks wait here; all must log the same names, or the next all-reduce would deadlock.
        for name, value in trainer.strategy.broadcast(values).items():
            pl_module.log(name, value, sync_dist=True)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the latest values."""
        if self._latest:
            announce(trainer, f"==> diagnostics of held-out text with 95 % intervals ({self.folder / FILE})")
            announce(trainer, table(self._latest))

    def _is_due(self, trainer: Trainer, module: TrainingModule) -> bool:
        is_trial = bool(trainer.fast_dev_run)  # type: ignore[attr-defined]
        measures = module.stage_name in STAGES if self.measurements is None else bool(self.measurements)
        if trainer.sanity_checking or is_trial or self.every_n_validations == 0 or not measures:
            return False
        if trainer.state.fn != TrainerFn.FITTING or trainer.global_step >= trainer.max_steps:
            return True
        # Counted in steps, not in calls, so that a resumed run measures where an uninterrupted one does.
        batches = trainer.global_step * trainer.accumulate_grad_batches
        return round(batches / (trainer.val_check_batch or math.inf)) % self.every_n_validations == 0

    def _measure(self, trainer: Trainer, module: TrainingModule) -> "tuple[Result, ...]":
        from fewstep.training.callbacks.measuring import make_brief_subject, measure

        model, device = module.saved_model(), module.device
        # No inference mode, whose tensors take no derivative, no gradients and no lower precision.
        with torch.inference_mode(False), torch.no_grad(), torch.autocast(device.type, enabled=False):
            try:
                subject = make_brief_subject(
                    model, module.data.corpus, device, self.num_examples, self.num_positions, self.seed
                )
            except UserError as error:
                if not self._problem:
                    self._problem = str(error)
                    announce(trainer, f"    no diagnostics: {error}")
                return ()
            return measure(module.stage_name, self.measurements, subject)

    def _append(self, step: int, results: "tuple[Result, ...]") -> None:
        line = {
            "step": step,
            "seed": self.seed,
            "num_examples": self.num_examples,
            "num_positions": self.num_positions,
            "table": {row.name: asdict(row.estimate) for row in self._latest},
            "results": {result.name: result.to_dict() for result in results},
        }
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with (self.folder / FILE).open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(line) + "\n")
        except OSError as error:
            raise UserError(f"cannot write into {self.folder}: {error.strerror or error}") from None

    def _show(self, trainer: Trainer, results: "tuple[Result, ...]") -> None:
        """Figures to the folder and to wandb."""
        from fewstep.evaluation.pictures import write_picture

        for result in results:
            picture = result.picture()
            if picture is None:
                continue
            file = self.folder / PICTURES / f"{result.name}.png"
            write_picture(picture, file)
            for logger in trainer.loggers:
                if isinstance(logger, WandbLogger):
                    logger.log_image(f"diag_pictures/{result.name}", [str(file)], step=trainer.global_step)


def check_measurements(names: list[str], module: TrainingModule | None = None) -> None:
    """Raise ``UserError`` for a name that is no measurement, or one that needs a part that ``module`` has not."""
    from fewstep.training.callbacks.measuring import check_parts, chosen_measurements

    chosen_measurements(names)
    if module is not None:
        check_parts(module.stage_name, names, module.saved_model().parts())


def table(rows: "tuple[Row, ...]") -> str:
    """Name, value, interval and unit of each row, in columns."""
    from fewstep.evaluation.columns import aligned_columns

    lines = [("name", "value", "interval", "unit")]
    for row in rows:
        value, interval = row.estimate.value, row.estimate.interval
        shown = "undetermined" if value is None else f"{value:.4g}"
        lines.append(
            (row.name, shown, "" if interval is None else f"{interval.low:.4g} - {interval.high:.4g}", row.unit)
        )
    return aligned_columns(lines, {0, 3})


def _is_finite(row: "Row") -> bool:
    return row.estimate.value is not None and math.isfinite(row.estimate.value)
