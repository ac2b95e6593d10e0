"""Training from YAML files and flags, by LightningCLI."""

import warnings
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentError, Namespace
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, EMAWeightAveraging, LearningRateMonitor, ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

from fewstep.errors import UserError
from fewstep.storage import read_checkpoint
from fewstep.training.callbacks import ExportModel, InterruptBetweenSteps, SampleTable, Throughput
from fewstep.training.data_module import TextDataModule
from fewstep.training.loggers import default_loggers
from fewstep.training.stage import Stage


class FewstepCLI(LightningCLI):
    """LightningCLI with a run folder: checkpoints, logs, samples and the finished model lie under ``--run_dir``."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the run folder, checkpoints, weight averaging, and hand the data to the model."""
        parser.add_argument("--run_dir", type=str, default="runs/latest", help="folder of everything that this run writes")
        parser.add_argument("--overwrite", type=bool, default=False, help="replace what an earlier run left in run_dir")
        parser.link_arguments("data", "model.init_args.data", apply_on="instantiate")
        parser.add_lightning_class_args(EMAWeightAveraging, "ema")
        parser.add_lightning_class_args(ModelCheckpoint, "checkpoint")
        parser.set_defaults(
            {
                "ema.decay": 0.995,
                "checkpoint.filename": "{step}",
                "checkpoint.save_last": True,
                "checkpoint.save_on_exception": True,
                "checkpoint.every_n_train_steps": 500,
            }
        )
        parser.link_arguments("run_dir", "checkpoint.dirpath", compute_fn=checkpoint_folder)

    def before_instantiate_classes(self) -> None:
        """Take the tokenizer of the model that the stage builds on, where the user names no other."""
        config = self._settings()
        base = config.model.init_args.get("autoencoder") if "init_args" in config.model else None
        if isinstance(base, str) and config.data.tokenizer is None:
            config.data.tokenizer = tokenizer_of(base, Path(config.run_dir))

    def instantiate_classes(self) -> None:
        """Build data, model and trainer; a value that a constructor refuses is the user's to mend."""
        try:
            super().instantiate_classes()
        except ValueError as error:
            raise UserError(str(error)) from error

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """The trainer with this run's loggers and callbacks."""
        run_dir = Path(self._settings().run_dir)
        fast = bool(self._settings().trainer.fast_dev_run)
        if not fast and self.subcommand == "fit":
            self._check_run_dir(run_dir)
        if self._settings().trainer.logger is None and not fast:
            kwargs["logger"] = default_loggers(run_dir)
        kwargs.setdefault("default_root_dir", str(run_dir))
        trainer = super().instantiate_trainer(**kwargs)
        trainer.callbacks = ordered_callbacks(trainer.callbacks, run_dir, self.model, bool(trainer.loggers))  # type: ignore[attr-defined]
        return trainer

    def fit(
        self, model: LightningModule, datamodule: TextDataModule, ckpt_path: str | None = None, weights_only: Any = None
    ) -> None:
        """Train; Lightning leaves by ``SystemExit`` after Ctrl-C, which becomes the interrupt that it was."""
        try:
            self.trainer.fit(model, datamodule=datamodule, ckpt_path=ckpt_path, weights_only=weights_only)
        except SystemExit:
            if self.trainer.interrupted:
                raise KeyboardInterrupt from None
            raise

    def _settings(self) -> Namespace:
        return self.config[self.subcommand] if self.subcommand else self.config

    def _check_run_dir(self, run_dir: Path) -> None:
        settings = self._settings()
        last = Path(checkpoint_folder(str(run_dir))) / "last.ckpt"
        if settings.ckpt_path == "last" and not last.is_file():
            raise UserError(f"--ckpt_path last: there is no {last} to go on from; leave --ckpt_path out to start anew")
        used = [name for name in ("checkpoints", "model") if (run_dir / name).exists()]
        if used and settings.ckpt_path is None and not settings.overwrite:
            raise UserError(
                f"{run_dir} holds an earlier run: go on with --ckpt_path last, choose another --run_dir, "
                "or pass --overwrite=true"
            )


def checkpoint_folder(run_dir: str) -> str:
    """Where a run keeps its checkpoints."""
    return str(Path(run_dir) / "checkpoints")


def tokenizer_of(base: str, run_dir: Path) -> str:
    """Folder of the tokenizer in a model folder; that of a checkpoint is written into the run folder first."""
    path = Path(base).expanduser()
    if path.is_file():
        folder = run_dir / "tokenizer"
        read_checkpoint(path).tokenizer.save_pretrained(folder)
        return str(folder)
    if not (path / "tokenizer").is_dir():
        raise UserError(f"{base} is no model: give a folder that training exported, or a .ckpt file")
    return str(path / "tokenizer")


def ordered_callbacks(given: list[Callback], run_dir: Path, model: LightningModule, logs: bool) -> list[Callback]:
    """All callbacks in the order that they need.

    What looks at the averaged weights stands before weight averaging, which swaps them back when validation ends; the
    export stands after it, when they have become the model's own; checkpoints come last.
    """
    watching: list[Callback] = [InterruptBetweenSteps(), Throughput()]
    if logs:
        watching.append(LearningRateMonitor("step"))
    if isinstance(model, Stage) and model.stage_name == "flow":
        watching.append(SampleTable(str(run_dir)))
    averaging = [callback for callback in given if isinstance(callback, EMAWeightAveraging)]
    saving = [callback for callback in given if isinstance(callback, ModelCheckpoint)]
    others = [callback for callback in given if callback not in averaging and callback not in saving]
    return [*watching, *others, *averaging, ExportModel(str(run_dir / "model")), *saving]


def quiet() -> None:
    """Silence warnings about choices that are made on purpose here."""
    for message in (".*args parameter is intended.*", ".*does not have many workers.*", ".*LeafSpec.*", ".*isinstance.treespec.*"):
        warnings.filterwarnings("ignore", message)


def run_training(arguments: list[str]) -> None:
    """Run LightningCLI on ``arguments`` (``fit --config FILE ...``).

    Raises UserError for a wrong key or value, naming it; ``KeyboardInterrupt`` and ``SIGTERMException`` for a run that
    was stopped, after its checkpoint is written.
    """
    quiet()
    options = {"exit_on_error": False}
    try:
        FewstepCLI(
            model_class=Stage,
            datamodule_class=TextDataModule,
            subclass_mode_model=True,
            seed_everything_default=0,
            trainer_defaults={"use_distributed_sampler": False},
            save_config_kwargs={"overwrite": True},
            parser_kwargs={"fit": options, "validate": options, "test": options, "predict": options, **options},
            args=arguments,
        )
    except ArgumentError as error:
        raise UserError(str(error)) from None
