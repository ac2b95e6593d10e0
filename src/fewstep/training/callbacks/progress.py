"""What a run shows: its bar, printed lines, speed and sample texts."""

import json
import sys
import time
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import TQDMProgressBar
from lightning.pytorch.callbacks.progress.tqdm_progress import Tqdm
from lightning.pytorch.loggers import WandbLogger

from fewstep.locking import draft_of, put_in_place
from fewstep.pipeline import TextGenerator
from fewstep.samplers import default_sampling, parse_rule
from fewstep.training.data_modules import Batch
from fewstep.training.flow import FlowModule
from fewstep.training.module import TrainingModule, announce, ends_logged_step

COLUMNS = ("step", "num_steps", "text")


class StepBar(TQDMProgressBar):
    """Lightning's bar, for training steps only, on stderr."""

    def init_train_tqdm(self) -> Tqdm:
        """The bar."""
        with redirect_stdout(sys.stderr):
            return super().init_train_tqdm()

    def init_validation_tqdm(self) -> Tqdm:
        """No bar."""
        return Tqdm(disable=True)

    init_sanity_tqdm = init_validation_tqdm


class Monitor(Callback):
    """Prints what is trained on which data, and logs ``train/tokens_per_second`` or ``train/images_per_second``.

    Real tokens of all ranks since the last log over wall-clock time without validation. The count stays on the device
    and is read when it is logged: Lightning's ``ThroughputMonitor`` syncs the device at every step.
    """

    def __init__(self) -> None:
        self._count: torch.Tensor | int = 0
        self._started = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the summary and start counting."""
        assert isinstance(pl_module, TrainingModule)
        count = sum(parameter.numel() for parameter in pl_module.parameters() if parameter.requires_grad)
        data, start = pl_module.data, trainer.global_step
        size = data.batch_size * trainer.world_size * trainer.accumulate_grad_batches
        resumed = f", going on from step {start:,}" if start else ""
        lines = [f"{trainer.max_steps:,} steps of {size:,} {data.example_name}{resumed}", *data.report().splitlines()]
        if start == 0:
            lines += pl_module.report().splitlines()
        if not trainer.fast_dev_run:  # type: ignore[attr-defined]
            lines.append(f"writes {trainer.default_root_dir}")
        announce(trainer, f"==> {pl_module.stage_name}: {count:,} parameters, " + "\n    ".join(lines))
        self._restart()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave the time of a validation out."""
        self._restart()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Count, and log every ``log_every_n_steps``."""
        assert isinstance(pl_module, TrainingModule)
        self._count = self._count + pl_module.data.units_in(batch)
        if ends_logged_step(trainer, batch_idx):
            count, seconds = int(self._count) * trainer.world_size, time.perf_counter() - self._started
            pl_module.log(f"train/{pl_module.data.unit}_per_second", count / max(seconds, 1e-9))
            self._restart()

    def _restart(self) -> None:
        self._count, self._started = 0, time.perf_counter()


class SampleTable(Callback):
    """After every validation of a text flow, samples texts from fixed noise with the averaged weights.

    They go to ``folder/samples.jsonl`` and to wandb as the table ``samples``: training step, number of sampling steps,
    text. ``num_steps`` lists the numbers of sampling steps; a model trained for one number is sampled with that.
    ``reinjection`` is a rule of re-injection such as 0.5 or "cosine:1,0" (:func:`fewstep.samplers.parse_rule`); None:
    the model's own (:func:`fewstep.samplers.default_sampling`). ``noise_scale`` is the temperature of sampling.

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

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Drop the rows of steps that a resumed run repeats."""
        if self._applies(trainer, pl_module) and self.file.is_file():
            rows = [row for row in self._rows() if row["step"] <= trainer.global_step]
            with draft_of(self.file) as draft:
                draft.write_text("".join(map(_line, rows)), encoding="utf-8")
                put_in_place(draft, self.file)

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
                generated = generator.generate(
                    self.num_samples, own.num_steps, self.seed, reinjection=rule, noise_scale=self.noise_scale
                )
                for text in generated.texts:
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
