"""What a run does at a validation: write texts of the averaged weights, and measure them."""

import json
import math
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from lightning import Callback, Trainer
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.trainer.states import TrainerFn

from fewstep.errors import UserError
from fewstep.locking import draft_of, put_in_place
from fewstep.pipeline import TextGenerator
from fewstep.samplers import default_sampling, parse_rule
from fewstep.training.module import TrainingModule, announce

if TYPE_CHECKING:
    from fewstep.diagnostics.result import Estimate, Result

COLUMNS = ("step", "num_steps", "text")
FILE, PICTURES = "diagnostics.jsonl", "diagnostics"
STAGES = ("autoencoder", "flow", "head")
"""Stages that have measurements of their own."""


class SampleTable(Callback):
    """After every validation of a text flow, samples texts from fixed noise with the averaged weights.

    They go to ``folder/samples.jsonl`` and to wandb as the table ``samples``. ``num_steps`` lists the numbers of
    sampling steps; a model trained for one number is sampled with that. ``reinjection`` is a rule such as 0.5 or
    "cosine:1,0" (:func:`fewstep.samplers.parse_rule`); None: the model's own.

    Listed before :class:`.WeightAverage`, which takes the average out of the model when the validation epoch ends. A
    resumed run keeps the rows up to its first step.
    """

    def __init__(
        self,
        folder: str,
        num_samples: int = 4,
        num_steps: tuple[int, ...] = (1, 4, 32),
        seed: int = 0,
        reinjection: float | str | list[float] | None = None,
        noise_scale: float = 1.0,
    ) -> None:
        self.file = Path(folder) / "samples.jsonl"
        self.num_samples = num_samples
        self.num_steps = tuple(num_steps)
        self.seed = seed
        self.reinjection = None if reinjection is None else parse_rule(reinjection)
        self.noise_scale = noise_scale

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        """Drop the rows of steps that a resumed run repeats."""
        if self._applies(trainer, pl_module):
            drop_later_rows(self.file, trainer.global_step)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
        """Sample, write, log; not in the sanity check before training."""
        if trainer.sanity_checking or not self._applies(trainer, pl_module):
            return
        generator = TextGenerator(pl_module.saved_model().to(pl_module.device))
        identity = generator.model.identity
        for own in dict.fromkeys(default_sampling(identity, steps) for steps in self.num_steps):
            rule = own.reinjection if self.reinjection is None else self.reinjection
            generated = generator.generate(
                self.num_samples, own.num_steps, self.seed, reinjection=rule, noise_scale=self.noise_scale
            )
            step = {"step": trainer.global_step, "num_steps": own.num_steps}
            append_rows(self.file, [{**step, "text": text} for text in generated.texts])
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                data = [[row[name] for name in COLUMNS] for row in rows_of(self.file)]
                logger.log_table("samples", columns=list(COLUMNS), data=data)

    def _applies(self, trainer: Trainer, pl_module: Any) -> bool:
        is_trial = bool(trainer.fast_dev_run)  # type: ignore[attr-defined]
        return pl_module.stage_name == "flow" and trainer.is_global_zero and not is_trial


class Diagnostics(Callback):
    """Measures the averaged weights at every ``every_n_validations``-th validation and after the last step; 0: never.

    ``measurements`` are names of :data:`fewstep.evaluation.measurements.MEASUREMENTS` or dotted paths of one's own;
    None: those of the stage. Rank 0 measures a copy of the model on ``num_examples`` held-out blocks, at
    ``num_positions`` tokens in each, with the noise of ``seed``. Every value is logged as ``diag/NAME``;
    ``folder/diagnostics.jsonl`` gets a line with all results, ``folder/diagnostics/`` the latest figures.

    Listed before :class:`.WeightAverage`. A resumed run keeps the lines up to its first step.
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
        self.folder = Path(folder)
        self.num_examples = num_examples
        self.num_positions = num_positions
        self.seed = seed
        self.every_n_validations = every_n_validations
        self.measurements = measurements
        self._problem = ""

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        """Drop the lines of steps that a resumed run repeats."""
        if trainer.is_global_zero:
            drop_later_rows(self.folder / FILE, trainer.global_step)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
        """Measure, log and write; not in the sanity check before training, and not in a trial run."""
        if not self._is_due(trainer, pl_module):
            return
        values: dict[str, float] = {}
        if trainer.is_global_zero and (results := self._measure(trainer, pl_module)):
            table = {row.name: row.estimate for result in results for row in result.rows}
            known = {name: estimate.value for name, estimate in table.items() if estimate.value is not None}
            values = {f"diag/{name}": value for name, value in known.items() if math.isfinite(value)}
            if trainer.state.fn == TrainerFn.FITTING:
                self._write(trainer, table, results)
        # The other ranks wait here; all must log the same names, or the next all-reduce would deadlock.
        for name, value in trainer.strategy.broadcast(values).items():
            pl_module.log(name, value, sync_dist=True)

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
        from fewstep.training.callbacks.measuring import chosen_measurements, make_brief_subject

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
            chosen = chosen_measurements(module.stage_name, self.measurements, subject.parts)
            return tuple(result for item in chosen.values() for result in item.run(subject, "training"))

    def _write(self, trainer: Trainer, table: "dict[str, Estimate]", results: "tuple[Result, ...]") -> None:
        """A line to the file, figures to the folder and to wandb."""
        from fewstep.evaluation.pictures import write_picture

        line = {
            "step": trainer.global_step,
            "seed": self.seed,
            "num_examples": self.num_examples,
            "num_positions": self.num_positions,
            "table": {name: asdict(estimate) for name, estimate in table.items()},
            "results": {result.name: asdict(result) for result in results},
        }
        append_rows(self.folder / FILE, [line])
        for result in results:
            if (picture := result.picture()) is None:
                continue
            file = self.folder / PICTURES / f"{result.name}.png"
            write_picture(picture, file)
            for logger in trainer.loggers:
                if isinstance(logger, WandbLogger):
                    logger.log_image(f"diag_pictures/{result.name}", [str(file)], step=trainer.global_step)


def rows_of(file: Path) -> list[dict[str, Any]]:
    """The rows of a JSONL file, without a last one that was cut off."""
    with file.open(encoding="utf-8") as stream:
        return [json.loads(line) for line in stream if line.endswith("\n")]


def append_rows(file: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Add rows to a JSONL file, which is made with its folder if need be."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a", encoding="utf-8") as stream:
        stream.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def drop_later_rows(file: Path, step: int) -> None:
    """Keep the rows up to a training step: a resumed run repeats the others."""
    if file.is_file():
        rows = [row for row in rows_of(file) if row["step"] <= step]
        with draft_of(file) as draft:
            append_rows(draft, rows)
            put_in_place(draft, file)
