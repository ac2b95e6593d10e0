"""Texts from the same noise, again and again, so that one sees them improve."""

import json
from pathlib import Path

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import WandbLogger

from fewstep.pipeline import TextGenerator
from fewstep.samplers import default_sampling, parse_rule
from fewstep.training.flow import FlowModule

Row = tuple[int, int, str]


class SampleTable(Callback):
    """After every validation of a flow, samples texts from fixed noise with the averaged weights.

    They go to wandb as the table ``samples`` and to ``folder/samples.jsonl``: one row a step, number of sampling steps
    and text. ``num_steps`` lists the numbers of sampling steps; a model trained for one number takes that in their
    place. ``seed`` fixes the noise. ``reinjection`` is a strength or a rule such as "cosine:1,0"
    (:func:`fewstep.samplers.parse_rule`); None: deterministic steps where the model allows it
    (:func:`fewstep.samplers.default_sampling`).

    It acts when the validation epoch ends, so it is listed before weight averaging, which takes the averaged weights
    back then. A resumed run keeps the rows up to the step that it goes on from.
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
        self._rows: list[Row] = []

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take over what was sampled before the step that a resumed run goes on from."""
        if self._applies(trainer, pl_module) and trainer.is_global_zero and self.file.is_file():
            with self.file.open(encoding="utf-8") as stream:
                rows = [json.loads(line) for line in stream if line.endswith("\n")]
            self._rows = [(row["step"], row["num_steps"], row["text"]) for row in rows]
            self._rows = [row for row in self._rows if row[0] <= trainer.global_step]
            self._write(self._rows, "w")

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Sample, write, log; not in the sanity check before training."""
        if trainer.sanity_checking or not self._applies(trainer, pl_module):
            return
        assert isinstance(pl_module, FlowModule)
        bundle = pl_module.bundle()
        if not trainer.is_global_zero:
            return
        generator = TextGenerator(bundle.to(pl_module.device))
        new: list[Row] = []
        identity = generator.bundle.identity
        for own in dict.fromkeys(default_sampling(identity, steps) for steps in self.num_steps):
            rule = own.reinjection if self.reinjection is None else self.reinjection
            texts = generator.generate(self.num_samples, own.num_steps, self.seed, reinjection=rule).texts
            new += [(trainer.global_step, own.num_steps, text) for text in texts]
        self._rows += new
        self._write(new, "a")
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                logger.log_table(
                    "samples", columns=["step", "num_steps", "text"], data=[list(row) for row in self._rows]
                )

    def _applies(self, trainer: Trainer, pl_module: LightningModule) -> bool:
        fast = bool(trainer.fast_dev_run)  # type: ignore[attr-defined]
        return isinstance(pl_module, FlowModule) and not fast

    def _write(self, rows: list[Row], mode: str) -> None:
        self.file.parent.mkdir(parents=True, exist_ok=True)
        with self.file.open(mode, encoding="utf-8") as stream:
            for step, steps, text in rows:
                stream.write(json.dumps({"step": step, "num_steps": steps, "text": text}, ensure_ascii=False) + "\n")
