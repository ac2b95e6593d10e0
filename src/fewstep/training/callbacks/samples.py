"""Texts from the same noise, again and again, so that one sees them improve."""

import json
from pathlib import Path

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import WandbLogger

from fewstep.pipeline import TextGenerator
from fewstep.training.stage import Stage


class SampleTable(Callback):
    """After every ``every_n_validations`` validations, samples texts from fixed noise with the averaged weights.

    They go to wandb as the table ``samples`` and to ``folder/samples.jsonl``: one row a step, number of sampling steps
    and text. ``num_steps`` lists the numbers of sampling steps; ``seed`` fixes the noise.
    """

    def __init__(
        self,
        folder: str,
        num_samples: int = 4,
        num_steps: tuple[int, ...] = (1, 4, 32),
        every_n_validations: int = 1,
        seed: int = 0,
    ) -> None:
        self.file = Path(folder) / "samples.jsonl"
        self.num_samples = num_samples
        self.num_steps = tuple(num_steps)
        self.every_n_validations = every_n_validations
        self.seed = seed
        self._validations = 0
        self._rows: list[list[int | str]] = []

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Sample, write, log; not in the sanity check before training."""
        if trainer.sanity_checking or not isinstance(pl_module, Stage) or not trainer.is_global_zero:
            return
        self._validations += 1
        bundle = pl_module.bundle()
        if self._validations % self.every_n_validations or bundle.denoiser is None or bundle.readout is None:
            return
        self._sample(TextGenerator(bundle), trainer)

    @torch.no_grad()
    def _sample(self, generator: TextGenerator, trainer: Trainer) -> None:
        new: list[list[int | str]] = []
        for steps in self.num_steps:
            texts = generator.generate(self.num_samples, steps, self.seed).texts
            new += [[trainer.global_step, steps, text] for text in texts]
        self._rows += new
        self.file.parent.mkdir(parents=True, exist_ok=True)
        with self.file.open("a", encoding="utf-8") as stream:
            for step, steps, text in new:
                stream.write(json.dumps({"step": step, "num_steps": steps, "text": text}, ensure_ascii=False) + "\n")
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                logger.log_table("samples", columns=["step", "num_steps", "text"], data=self._rows)
