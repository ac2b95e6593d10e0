"""Training from YAML files and flags, by LightningCLI."""

import errno
from importlib import import_module
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ActionYesNo, ArgumentError, Namespace
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, Checkpoint, ProgressBar, WeightAveraging
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from fewstep.errors import UserError
from fewstep.locking import LOCK_FILE, FolderLock
from fewstep.training.callbacks import (
    AutoencoderDiagnostics,
    CompiledBlocks,
    DiagnosticsCallback,
    ExportModel,
    FlowDiagnostics,
    HeadDiagnostics,
    RecomputedBlocks,
    ResumePoint,
    SampleTable,
    SkipNonFinite,
    StageSummary,
    StepProgress,
    Throughput,
    WeightAverage,
)
from fewstep.training.checkpoint_files import WholeCheckpointIO, cannot_write
from fewstep.training.loggers import check_wandb, default_loggers, finish_wandb
from fewstep.training.messages import one_line
from fewstep.training.module import TrainingModule
from fewstep.training.noise import silence
from fewstep.training.run_folder import (
    MODEL,
    check_run_folder,
    checkpoint_folder,
    nonfinite_folder,
    prepare_run_folder,
    resolve_checkpoint,
    tidy_run_folder,
    tokenizer_of,
)
from fewstep.training.setting_checks import check_settings
from fewstep.training.step_data import StepDataModule

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
"""What the disk answers where it takes no more."""
SHARDING = ("fsdp", "deepspeed", "modelparallel", "xla_fsdp")
"""How the names of Lightning's strategies begin that keep a part of the weights in each process."""
TEXT = "fewstep.training.TextDataModule"
"""The class of ``data`` where none is named."""


class SaveConfig(SaveConfigCallback):
    """Keeps all settings of a run as ``config.yaml`` in its folder, and as wandb's config."""

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Lightning calls this in the first process only. Commands other than ``fit`` have no run folder."""
        if stage != "fit":
            return
        file = Path(trainer.default_root_dir) / self.config_filename
        self.parser.save(self.config, file, skip_none=False, overwrite=True, multifile=False)
        settings = yaml.safe_load(file.read_text(encoding="utf-8"))
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                logger.log_hyperparams(settings)


class FewstepCLI(LightningCLI):
    """LightningCLI with a run folder: checkpoints, logs, samples and the finished model lie under ``--run_dir``."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the run folder, checkpoints, weight averaging, and hand the data to the model."""
        parser.add_argument(
            "--run_dir", type=str, default="runs/latest", help="folder of everything that this run writes"
        )
        parser.add_argument(
            "--overwrite", action=ActionYesNo, nargs="?", default=False, help="replace an earlier run in run_dir"
        )
        parser.link_arguments("data", "model.init_args.data", apply_on="instantiate")
        parser.add_lightning_class_args(WeightAverage, "ema")
        parser.add_lightning_class_args(ResumePoint, "checkpoint")
        parser.add_lightning_class_args(CompiledBlocks, "compile")
        parser.add_lightning_class_args(RecomputedBlocks, "recompute")
        parser.add_lightning_class_args(SkipNonFinite, "nonfinite")
        parser.add_lightning_class_args(SampleTable, "samples")
        parser.add_class_arguments(DiagnosticsCallback, "diagnostics", skip={"folder"}, instantiate=False)
        parser.set_defaults({"data": {"class_path": TEXT, "init_args": {}}})
        parser.link_arguments("run_dir", "samples.folder")
        parser.link_arguments("run_dir", "checkpoint.dirpath", compute_fn=checkpoint_folder)
        parser.link_arguments("run_dir", "nonfinite.folder", compute_fn=nonfinite_folder)

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse, and find the checkpoint to go on from. Raises ``UserError`` where it does not fit."""
        super().parse_arguments(parser, args)
        config = self.config[self.config.subcommand]
        check_settings(config)
        self._lock, self._note = FolderLock(Path(config.run_dir), "--run_dir"), ""
        if config.ckpt_path is not None:  # before Lightning reads it, which fails without a word on what to do
            stage = named(config.model.class_path).stage_name
            found = resolve_checkpoint(config.ckpt_path, Path(config.run_dir), stage)
            config.ckpt_path, self._note = str(found.file), found.note

    def before_instantiate_classes(self) -> None:
        """Check the run folder before anything costs time, and take the base model's tokenizer.

        Raises ``UserError`` for a run folder that is in use, for a base model that is none, for data that are not the
        model's, and for a strategy that does not fit.
        """
        config = self._settings()
        check_strategy(config.trainer.strategy)
        check_data(config.model.class_path, config.data.class_path)
        base, data = self._base(), config.data.init_args
        if base is not None and "tokenizer" in data and data.tokenizer is None:
            data.tokenizer = tokenizer_of(base, data.cache_dir)
        if self._writes():
            if config.trainer.logger is None:
                check_wandb()
            self._check_run_folder()

    def _check_run_folder(self) -> None:
        """Refuse a folder in which another process trains, before it is judged by what that has written so far."""
        config, run_dir = self._settings(), self._lock.folder
        if (run_dir / LOCK_FILE).exists():  # else a refusal would leave one
            self._lock.acquire()
        try:
            if not self._goes_on():
                check_run_folder(run_dir, overwrite=config.overwrite, built_on=self._built_on())
        except UserError:
            self._lock.release()
            raise

    def instantiate_classes(self) -> None:
        """Build data, model and trainer; a value that a constructor refuses is the user's to mend."""
        try:
            super().instantiate_classes()
        except BaseException as error:
            self._lock.release()
            if isinstance(error, ValueError | MisconfigurationException):
                raise UserError(one_line(str(error))) from error
            raise

    # LightningCLI calls it without arguments and offers **kwargs to subclasses only, so none are taken here.
    def instantiate_trainer(self) -> Trainer:  # type: ignore[override]
        """The trainer with this run's folder, loggers and callbacks."""
        config = self._settings()
        run_dir = Path(config.run_dir)
        if self._writes():
            self._lock.acquire()
            if self._goes_on():
                tidy_run_folder(run_dir, Path(config.ckpt_path))
            else:
                prepare_run_folder(run_dir, overwrite=config.overwrite, built_on=self._built_on())
        logger = config.trainer.logger
        if logger is None:
            logger = default_loggers(run_dir) if self.subcommand == "fit" and not config.trainer.fast_dev_run else False
        trainer = super().instantiate_trainer(default_root_dir=str(run_dir), logger=logger)
        trainer.callbacks = ordered_callbacks(trainer.callbacks, run_dir, dict(config.diagnostics))  # type: ignore[attr-defined]
        trainer.strategy.checkpoint_io = WholeCheckpointIO()
        if self._note:
            trainer.print(f"==> {self._note}")
        return trainer

    def fit(
        self, model: LightningModule, datamodule: StepDataModule, ckpt_path: str | None = None, weights_only: Any = None
    ) -> None:
        """Train. Raises ``TrainingStopped`` where a signal ended it: Lightning leaves by ``SystemExit`` then."""
        try:
            # What is loaded holds tensors and plain values only: no code of the file is run.
            self.trainer.fit(model, datamodule=datamodule, ckpt_path=ckpt_path, weights_only=True)
            if ckpt_path is not None and self._writes():
                self._export_finished(ckpt_path)
        except MisconfigurationException as error:
            raise UserError(one_line(str(error))) from error
        except OSError as error:
            if error.errno not in NO_ROOM:
                raise
            raise UserError(cannot_write(Path(error.filename or self._lock.folder), error)) from error
        except (KeyboardInterrupt, SystemExit) as error:
            if not self.trainer.interrupted:
                raise
            (resume_point,) = (item for item in self.trainer.callbacks if isinstance(item, ResumePoint))  # type: ignore[attr-defined]
            raise resume_point.stopped_by(error, self.trainer) from None
        finally:
            self._lock.release()

    def _export_finished(self, ckpt_path: str) -> None:
        """Write the model of a run that ended between its last step and the export: nothing was left to train."""
        (export,) = (item for item in self.trainer.callbacks if isinstance(item, ExportModel))  # type: ignore[attr-defined]
        if not export.wrote:  # a model that is there may be of fewer steps
            self.model.saved_class.from_pretrained(ckpt_path).save_pretrained(export.folder, overwrite=True)
            self.trainer.print(f"==> nothing was left to train; model in {export.folder}")

    def _settings(self) -> Namespace:
        return self.config[self.subcommand] if self.subcommand else self.config

    def _base(self) -> str | None:
        """The model folder or checkpoint that the stage builds on."""
        base = self._settings().model.get("init_args", {}).get("autoencoder")
        return base if isinstance(base, str) else None

    def _built_on(self) -> list[str]:
        """Every model folder or checkpoint that the settings of the model name."""
        given = self._settings().model.get("init_args", {})
        found = (given.get(name) for name in ("autoencoder", "teacher", "initialise_from", "language_model"))
        return [path for path in found if isinstance(path, str)]

    def _goes_on(self) -> bool:
        """Whether the checkpoint is the run folder's own, so that what lies there is this run's."""
        config = self._settings()
        return (
            config.ckpt_path is not None and Path(config.run_dir).resolve() in Path(config.ckpt_path).resolve().parents
        )

    def _writes(self) -> bool:
        """Whether this process makes the run folder: the first one does, unless the run is a trial."""
        fast = bool(self._settings().trainer.fast_dev_run)
        return self.subcommand == "fit" and not fast and getattr(rank_zero_only, "rank", 0) == 0


def named(class_path: str) -> Any:
    """The class with this dotted name."""
    module, _, name = class_path.rpartition(".")
    return getattr(import_module(module), name)


def check_strategy(strategy: Any) -> None:
    """Raise ``UserError`` for a ``trainer.strategy`` that shards the weights: checkpoints and averages would be parts.

    ``strategy`` is a name, or settings with a ``class_path``.
    """
    name = str(strategy if isinstance(strategy, str) else getattr(strategy, "class_path", ""))
    if name.rpartition(".")[2].lower().startswith(SHARDING):
        raise UserError(f"trainer.strategy is {name}: every process keeps whole weights here; give ddp (docs/scale.md)")


def check_data(model: str, data: str) -> None:
    """Raise ``UserError`` unless the class ``model`` trains on data of the class ``data``, both by dotted name."""
    expected = named(model).data_class
    if not issubclass(named(data), expected):
        model, data = (name.rpartition(".")[2] for name in (model, data))
        raise UserError(f"data.class_path is {data}, but {model} trains on {expected.__name__}: give that class")


def ordered_callbacks(given: list[Callback], run_dir: Path, diagnostics: dict[str, int]) -> list[Callback]:
    """All callbacks in the order that they need; ``diagnostics`` are the settings of those that measure the model.

    What looks at the averaged weights stands before weight averaging, which swaps them back when the validation epoch
    ends; the export stands after it, when they have become the model's own; checkpoints come last, because the
    average's update belongs to the step that they save. Lightning's progress bar gives way to ours where it is on.
    """
    watching: list[Callback] = [StageSummary(str(run_dir)), Throughput()]
    if any(isinstance(callback, ProgressBar) for callback in given):
        watching.append(StepProgress())
    for callback in (AutoencoderDiagnostics, FlowDiagnostics, HeadDiagnostics):
        watching.append(callback(str(run_dir), **diagnostics))
    watching += [callback for callback in given if isinstance(callback, SampleTable)]
    averaging = [callback for callback in given if isinstance(callback, WeightAveraging)]
    saving = [callback for callback in given if isinstance(callback, Checkpoint)]
    others = [item for item in given if not isinstance(item, SampleTable | WeightAveraging | Checkpoint | ProgressBar)]
    return [*watching, *others, *averaging, ExportModel(str(run_dir / MODEL)), *saving]


def run_training(arguments: list[str], command: type[FewstepCLI] = FewstepCLI) -> None:
    """Run ``command`` on ``arguments`` (``fit --config FILE ...``).

    Raises ``UserError`` for a wrong key or value, naming it, and ``TrainingStopped`` for a run that a signal ended,
    with the checkpoint to go on from.
    """
    silence()
    options = {"exit_on_error": False, "allow_abbrev": False}
    try:
        command(
            model_class=TrainingModule,
            datamodule_class=StepDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            seed_everything_default=0,
            # Steps only: with a number of epochs Lightning makes the data before it restores where the run stood.
            trainer_defaults={"use_distributed_sampler": False, "max_epochs": -1, "enable_model_summary": False},
            save_config_callback=SaveConfig,
            save_config_kwargs={"save_to_log_dir": False, "config_filename": "config.yaml"},
            parser_kwargs={"fit": options, "validate": options, "test": options, "predict": options, **options},
            auto_configure_optimizers=False,
            args=arguments,
        )
    except SystemExit as left:  # --help and --print_config end so
        if left.code not in (None, 0):
            raise
    except ArgumentError as error:
        raise UserError(one_line(str(error))) from None
    finally:
        finish_wandb()
