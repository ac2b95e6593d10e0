"""Every setting of Lightning's trainer, in every type it is annotated with: it works, or is one line and no folder."""

import inspect
import json
from pathlib import Path

import pytest
from lightning import Trainer

from fewstep.cli.main import main
from tests.runs import Workshop

WORKS: dict[str, list[str]] = {
    "accelerator": ["cpu", "auto"],
    "strategy": ["auto", "lightning.pytorch.strategies.SingleDeviceStrategy"],
    "devices": ["1", "auto"],
    "precision": ["32", "bf16-mixed"],
    "logger": [
        '[{"class_path":"CSVLogger","init_args":{"save_dir":"."}},{"class_path":"WandbLogger"}]',
        "CSVLogger",
        "WandbLogger",
        "false",
    ],
    "callbacks": ["LearningRateMonitor", '[{"class_path":"RichModelSummary"}]'],
    "fast_dev_run": ["false", "0"],
    "max_epochs": ["-1"],
    "min_epochs": ["1"],
    "max_steps": ["2", "2e0"],
    "min_steps": ["1"],
    "max_time": ["00:01:00:00", '{"hours": 1}'],
    "limit_train_batches": ["1.0", "2"],
    "limit_val_batches": ["1", "0.5"],
    "overfit_batches": ["0.0", "0"],
    "val_check_interval": ["1", "00:00:00:01", '{"seconds": 1}', "null"],
    "check_val_every_n_epoch": ["null"],
    "num_sanity_val_steps": ["0"],
    "log_every_n_steps": ["1"],
    "enable_checkpointing": ["true"],
    "enable_progress_bar": ["true", "false"],
    "enable_model_summary": ["true"],
    "accumulate_grad_batches": ["1", "2"],
    "gradient_clip_val": ["1", "0.5"],
    "gradient_clip_algorithm": ["norm", "value"],
    "deterministic": ["true", "warn"],
    "benchmark": ["false"],
    "profiler": ["simple", "SimpleProfiler"],
    "detect_anomaly": ["true"],
    "plugins": [
        "lightning.pytorch.plugins.environments.LightningEnvironment",
        '[{"class_path":"lightning.pytorch.plugins.environments.LightningEnvironment"}]',
    ],
    "sync_batchnorm": ["true"],
}
"""At least one value of every type; the n-th values are given together, and of all others their defaults."""
DEFAULTS = {name: parameter.default for name, parameter in inspect.signature(Trainer.__init__).parameters.items()}

REFUSED = {
    "accelerator=gpu": "gpu",
    "strategy=DDPStrategie": "strategy",
    "strategy=lightning.pytorch.strategies.FSDPStrategy": "give ddp",
    "devices=[0]": "devices",
    "devices=0": "devices",
    "num_nodes=2": "MASTER_ADDR",
    "precision=64": "32-true",
    "precision=64-true": "32-true",
    "precision=bf16-true": "bf16-mixed",
    "precision=transformer-engine": "transformer_engine",
    "callbacks=LearningRateFinder": "model.optimizer.learning_rate",
    'callbacks=[{"class_path":"GradientAccumulationScheduler","init_args":{"scheduling":{0: 2}}}]': "accumulate",
    "callbacks=StochasticWeightAveraging --trainer.callbacks.swa_lrs=0.1": "ema.decay",
    "fast_dev_run=-2": "fast_dev_run",
    "max_epochs=1": "trainer.max_steps",
    "overfit_batches=3": "give data.max_documents",
    "limit_train_batches=0": "0 batches in a pass",
    "limit_train_batches=3 --trainer.accumulate_grad_batches=2": "expected a multiple of",
    "val_check_interval=4 --trainer.limit_train_batches=3 --trainer.check_val_every_n_epoch=1": "val_check_interval",
    "limit_train_batches=0.5 --data.streaming=true": "must be `1.0` or an int",
    "max_time=soon": "soon",
    "limit_train_batches=-1": "limit_train_batches",
    "limit_val_batches=0.01": "limit_val_batches",
    "val_check_interval=1.0 --trainer.check_val_every_n_epoch=null": "val_check_interval",
    "val_check_interval=soon": "soon",
    "check_val_every_n_epoch=2": "val_check_interval",
    "check_val_every_n_epoch=0": "val_check_interval",
    "accumulate_grad_batches=0": "accumulate_grad_batches",
    "log_every_n_steps=-1": "log_every_n_steps",
    "gradient_clip_algorithm=most": "most",
    "profiler=xla": "simple",
    "plugins=lightning.pytorch.plugins.AsyncCheckpointIO": "AsyncCheckpointIO",
    "default_root_dir=elsewhere": "run_dir",
    "enable_checkpointing=false": "enable_checkpointing",
}


@pytest.mark.parametrize("number", range(max(map(len, WORKS.values()))))
def test_settings_of_every_type_train(
    number: int, workshop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "offline")
    settings = {name: [json.dumps(value)] for name, value in DEFAULTS.items() if name != "self"} | WORKS
    given = [f"--trainer.{name}={values[min(number, len(values) - 1)]}" for name, values in settings.items()]
    given += ["--trainer.strategy.device=cpu"] * (number > 0)
    assert main(["train", *workshop.arguments("language_model", "--run_dir=run", *given)]) == 0
    assert (tmp_path / "run" / "model").is_dir()
    assert [file.name for file in tmp_path.iterdir()] == ["run"], "loggers write into the run's folder"
    assert bool(list(Path("run/wandb").glob("offline-run-*"))) == (number in (0, 2))
    assert bool(list(Path("run").rglob("metrics.csv"))) == (number in (0, 1))


@pytest.mark.parametrize("setting", REFUSED)
def test_what_cannot_work_is_one_line_and_no_folder(
    setting: str, workshop: Workshop, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = f"--trainer.{setting}".replace(" --", "\n--").split("\n")
    assert main(["train", *workshop.arguments("language_model", f"--run_dir={tmp_path / 'run'}", *given)]) == 2
    (error,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("fewstep")]
    assert REFUSED[setting] in error and not (tmp_path / "run").exists()


def test_every_subcommand_that_is_listed_works(
    workshop: Workshop, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, code in (("validate", 0), ("test", 2), ("predict", 2)):
        arguments = workshop.arguments("language_model", f"--run_dir={tmp_path}")
        assert main(["train", name, *arguments[1:]]) == code
    assert "'fit', 'validate'" in capsys.readouterr().err
