"""What the callbacks of diagnostics share: when to measure, and where the results go."""

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import ClassVar

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.trainer.states import TrainerFn

from fewstep.bundle import ModelBundle
from fewstep.diagnostics import Diagnostic, DiagnosticRow
from fewstep.errors import UserError
from fewstep.report import write_picture
from fewstep.training.callbacks import wandb_diagnostics
from fewstep.training.callbacks.diagnosed import MIN_EXAMPLES, Material, material, outside_of_training
from fewstep.training.stage import Stage

FILE, PICTURES = "diagnostics.jsonl", "diagnostics"

Results = tuple[Diagnostic, ...]


class DiagnosticsCallback(Callback):
    """Base: a subclass names the stage that it looks at and the parts that it needs, and ``measure``s.

    At every ``every_n_validations``-th validation, and at the one after the last step, the first process measures the
    averaged weights on ``num_examples`` held-out blocks, at ``num_positions`` tokens in each, with the noise of
    ``seed``; at 0 it never does. Every row that is determined is logged as ``diag/NAME``. ``folder/diagnostics.jsonl``
    gets a line with all results and their intervals, ``folder/diagnostics/`` the latest pictures; wandb gets pictures
    and histograms too. When training ends the latest rows are printed.

    It acts when the validation epoch ends, so it is listed before weight averaging, which takes the averaged weights
    back then. Training is not touched: a copy is measured, with random numbers of its own. A resumed run keeps the
    lines up to the step that it goes on from. Raises ``ValueError`` for numbers out of range.
    """

    stage_class: ClassVar[type[Stage]] = Stage
    parts: ClassVar[tuple[str, ...]] = ("autoencoder", "readout")

    def __init__(
        self, folder: str, num_examples: int = 32, num_positions: int = 2, seed: int = 0, every_n_validations: int = 1
    ) -> None:
        if num_examples < MIN_EXAMPLES or num_positions < 1 or every_n_validations < 0:
            raise ValueError(
                f"diagnostics.num_examples is {num_examples}, num_positions {num_positions}, every_n_validations "
                f"{every_n_validations}: expected at least {MIN_EXAMPLES}, at least 1, and at least 0 (never)"
            )
        self.folder = Path(folder)
        self.num_examples = num_examples
        self.num_positions = num_positions
        self.seed = seed
        self.every_n_validations = every_n_validations
        self._latest: tuple[DiagnosticRow, ...] = ()
        self._told: set[str] = set()

    def measure(self, found: Material) -> Results:
        """The results of one validation; the first process alone calls it."""
        raise UserError(f"{type(self).__name__} measures nothing: derive it from a class that does")

    def values(self, results: Results) -> dict[str, float]:
        """What is logged, by name: every row that is determined."""
        found = {f"diag/{row.name}": row.estimate.value for result in results for row in result.rows()}
        return {name: value for name, value in found.items() if value is not None and math.isfinite(value)}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Drop what was measured after the step that a resumed run goes on from."""
        file = self.folder / FILE
        if self._writes(trainer, pl_module) and file.is_file():
            with file.open(encoding="utf-8") as stream:
                lines = [line for line in stream if line.endswith("\n")]
            kept = [line for line in lines if json.loads(line)["step"] <= trainer.global_step]
            file.write_text("".join(kept), encoding="utf-8")

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure, log and write; not in the sanity check before training, and not in a trial run."""
        if not isinstance(pl_module, self.stage_class) or not self._is_due(trainer):
            return
        values: dict[str, float] = {}
        bundle = pl_module.bundle()
        if trainer.is_global_zero:
            with outside_of_training(pl_module.device):
                results = self._results(trainer, pl_module, bundle)
            values = self.values(results)
            if self._writes(trainer, pl_module):
                self._write(trainer, results, values)
        # The others wait here, and all log the same names: one that only some log would have them wait for ever.
        for name, value in trainer.strategy.broadcast(values).items():
            pl_module.log(name, value, sync_dist=True)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the latest rows."""
        if self._latest and self._writes(trainer, pl_module):
            trainer.print(f"==> diagnostics of held-out text with 95 % intervals ({self.folder / FILE})")
            trainer.print(table(self._latest))

    def _is_due(self, trainer: Trainer) -> bool:
        trial = bool(trainer.fast_dev_run)  # type: ignore[attr-defined]
        if trainer.sanity_checking or trial or self.every_n_validations == 0:
            return False
        if trainer.state.fn != TrainerFn.FITTING or trainer.global_step >= trainer.max_steps:
            return True
        # Counted by steps, not by calls, so that a resumed run measures where an unbroken one does.
        batches = trainer.global_step * trainer.accumulate_grad_batches
        return round(batches / (trainer.val_check_batch or math.inf)) % self.every_n_validations == 0

    def _writes(self, trainer: Trainer, pl_module: LightningModule) -> bool:
        trial = bool(trainer.fast_dev_run)  # type: ignore[attr-defined]
        fitting = trainer.state.fn == TrainerFn.FITTING and not trial
        return fitting and trainer.is_global_zero and isinstance(pl_module, self.stage_class)

    def _results(self, trainer: Trainer, pl_module: Stage, bundle: ModelBundle) -> Results:
        def tell(line: str) -> None:
            if line not in self._told:
                self._told.add(line)
                trainer.print(f"    {line}")

        found = material(pl_module, bundle, self.parts, self.num_examples, self.num_positions, self.seed, tell)
        return () if found is None else self.measure(found)

    def _write(self, trainer: Trainer, results: Results, values: dict[str, float]) -> None:
        if results:
            self._latest = tuple(row for result in results for row in result.rows())
            self._append(trainer.global_step, results)
        pictures = {result.name: result.picture() for result in results}
        files = {name: self.folder / PICTURES / f"{name}.png" for name, picture in pictures.items() if picture}
        for name, file in files.items():
            picture = pictures[name]
            assert picture is not None
            write_picture(picture, file)
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                wandb_diagnostics.define(logger, [name for name in values if name.startswith("diag/")])
                wandb_diagnostics.show(logger, trainer.global_step, results, files)

    def _append(self, step: int, results: Results) -> None:
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


def table(rows: tuple[DiagnosticRow, ...]) -> str:
    """Name, value, interval and unit of each row, in columns."""
    cells = []
    for row in rows:
        value, interval = row.estimate.value, row.estimate.interval
        shown = "undetermined" if value is None else f"{value:.4g}"
        between = "" if interval is None else f"{interval.low:.4g} - {interval.high:.4g}"
        cells.append((row.name, shown, between, row.unit))
    widths = [max(len(line[column]) for line in cells) for column in range(3)]
    lines = (
        f"    {name:<{widths[0]}}  {value:>{widths[1]}}  {interval:>{widths[2]}}  {unit}".rstrip()
        for name, value, interval, unit in cells
    )
    return "\n".join(lines)
