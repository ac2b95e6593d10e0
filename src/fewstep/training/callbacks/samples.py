"""Texts sampled from the same noise after every validation."""

import json
from pathlib import Path

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import WandbLogger

from fewstep.pipeline import TextGenerator
from fewstep.samplers import default_sampling, parse_rule
from fewstep.training.flow import FlowModule
from fewstep.training.module import TrainingModule

COLUMNS = ("step", "num_steps", "text")


class SampleTable(Callback):
    """After every validation of a text flow, samples texts from fixed noise with the averaged weights.

    They go to ``folder/samples.jsonl`` and to wandb as the table ``samples``: training step, number of sampling steps,
    text. ``num_steps`` lists the numbers of sampling steps; a model trained for one number is sampled with that.
    ``reinjection`` is a rule of re-injection such as 0.5 or "cosine:1,0" (:func:`fewstep.samplers.parse_rule`); None:
    the model's own (:func:`fewstep.samplers.default_sampling`).

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
    ) -> None:
        self.file = Path(folder) / "samples.jsonl"
        self.num_samples = num_samples
        self.num_steps = tuple(num_steps)
        self.seed = seed
        self.reinjection = None if reinjection is None else parse_rule(reinjection)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Drop the rows of steps that a resumed run repeats."""
        if self._applies(trainer, pl_module) and self.file.is_file():
            rows = [row for row in self._rows() if row["step"] <= trainer.global_step]
            self.file.write_text("".join(map(_line, rows)), encoding="utf-8")

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Sample, write, log; not in the sanity check before training."""
        if trainer.sanity_checking or not self._applies(trainer, pl_module):
            return
        assert isinstance(pl_module, FlowModule)
        generator = TextGenerator(pl_module.saved_model().to(pl_module.device))
        identity = generator.model.identity
        self.file.parent.mkdir(parents=True, exist_ok=True)
        with self.file.open("a", encoding="utf-8") as stream:
            for own in dict.fromkeys(default_sampling(identity, steps) for steps in self.num_steps):
                rule = own.reinjection if self.reinjection is None else self.reinjection
                texts = generator.generate(self.num_samples, own.num_steps, self.seed, reinjection=rule).texts
                for text in texts:
                    stream.write(_line({"step": trainer.global_step, "num_steps": own.num_steps, "text": text}))
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                data = [[row[name] for name in COLUMNS] for row in self._rows()]
                logger.log_table("samples", columns=list(COLUMNS), data=data)

    def _applies(self, trainer: Trainer, pl_module: LightningModule) -> bool:
        assert isinstance(pl_module, TrainingModule)
        is_trial = bool(trainer.fast_dev_run)  # type: ignore[attr-defined]
        return pl_module.stage_name == FlowModule.stage_name and trainer.is_global_zero and not is_trial

    def _rows(self) -> list[dict]:
        with self.file.open(encoding="utf-8") as stream:
            return [json.loads(line) for line in stream if line.endswith("\n")]


def _line(row: dict) -> str:
    return json.dumps(row, ensure_ascii=False) + "\n"
