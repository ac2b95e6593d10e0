"""Training runs so small that they take a second or two, the text and model they share, and what they leave."""

import csv
import json
import os
import random
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from fewstep.data.sources import CorpusSettings
from fewstep.training.command import main

ROOT = Path(__file__).parents[1]
CONFIGS = ROOT / "configs"
BLOCK_SIZE, BATCH_SIZE = 8, 4
WORDS = ("the", "old", "ship", "sailed", "past", "lights", "and", "we", "know", "how", "far", "it", "would", "be")


DOCUMENTS = 40


def write_text(file: Path) -> Path:
    """Documents of 60 random words that train a vocabulary of 300 at once, in a form that can be streamed."""
    draw = random.Random(0)
    texts = (f"Text {number}. " + " ".join(draw.choice(WORDS) for _ in range(60)) for number in range(DOCUMENTS))
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    return file


@dataclass(frozen=True)
class Workshop:
    """A folder with a text and its cache; ``autoencoder`` is a model folder on it."""

    folder: Path

    @property
    def autoencoder(self) -> Path:
        return self.folder / "autoencoder" / "model"

    def settings(self) -> CorpusSettings:
        """The tiny text, as the autoencoder saw it."""
        return CorpusSettings(
            source=str(self.folder / "text.jsonl"),
            cache_dir=str(self.folder / "cache"),
            vocab_size=300,
            block_size=BLOCK_SIZE,
            max_documents=DOCUMENTS,
        )

    def data(self) -> list[str]:
        """Flags that put the tiny text in place of whatever a YAML file names."""
        settings = self.settings()
        names = ("source", "cache_dir", "vocab_size", "block_size", "max_documents")
        values = {name: getattr(settings, name) for name in names}
        values |= {"batch_size": BATCH_SIZE, "num_validation_blocks": 8}
        return [f"--data.{name}={value}" for name, value in values.items()]

    def arguments(self, stage: str, *flags: str, size: str = "debug", steps: int = 4) -> list[str]:
        """``fit`` of a stage, tiny, in float32, with every step logged, without diagnostics; ``flags`` come last."""
        base = [] if stage in ("autoencoder", "language_model") else [f"--model.autoencoder={self.autoencoder}"]
        base += ["--model.language_model=null"] if stage == "head" else []
        steps_flags = [f"--trainer.max_steps={steps}", f"--trainer.val_check_interval={max(steps // 2, 1)}"]
        common = ["--trainer.precision=32", "--trainer.log_every_n_steps=1", "--trainer.enable_progress_bar=false"]
        config = ["--config", str(CONFIGS / f"{stage}.yaml"), "--size", size]
        common += ["--diagnostics.every_n_validations=0"]  # they take longer than so short a run
        return ["fit", *config, *self.data(), *base, *steps_flags, *common, *flags]


def make_workshop(folder: Path) -> Workshop:
    """Write the text and train the autoencoder."""
    write_text(folder / "text.jsonl")
    workshop = Workshop(folder)
    assert main(workshop.arguments("autoencoder", f"--run_dir={folder / 'autoencoder'}")) == 0
    return workshop


def start(arguments: list[str], script: Path | None = None) -> subprocess.Popen[str]:
    """``python train.py`` (or another script) in a process of its own, on one thread."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(script or ROOT / "train.py"), *arguments]
    return subprocess.Popen(
        command, env=environment, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def logged(run_dir: Path) -> dict[str, dict[int, float]]:
    """What all CSV files of a run hold: by metric, then by step. A value that comes twice fails."""
    found: dict[str, dict[int, float]] = {}
    for file in sorted(run_dir.glob("csv/version_*/metrics.csv")):
        with file.open(newline="", encoding="utf-8") as stream:
            for row in csv.DictReader(stream):
                step, _ = int(row.pop("step")), row.pop("epoch")
                for name, value in row.items():
                    if value:
                        assert step not in found.setdefault(name, {}), f"{name} twice at step {step}"
                        found[name][step] = float(value)
    return found
