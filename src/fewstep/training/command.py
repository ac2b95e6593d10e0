"""``fewstep train``: one stage from YAML files and flags, by LightningCLI."""

import logging
import sys
import warnings
from pathlib import Path
from typing import Any

import wandb
import yaml
from jsonargparse import ActionYesNo, ArgumentError, Namespace
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from fewstep.errors import UserError
from fewstep.registry import import_attribute
from fewstep.settings import PARSER, ConfigOption, SizeOption, expand_home, parser_message, whole_number
from fewstep.shapes import own_defaults
from fewstep.training.callbacks.interruptions import ResumePoint, SkipNonFinite, TrainingStopped
from fewstep.training.callbacks.validations import Diagnostics, SampleTable
from fewstep.training.callbacks.weights import CompiledBlocks, RecomputedBlocks, WeightAverage
from fewstep.training.data_modules import StepDataModule
from fewstep.training.module import TrainingModule, announce
from fewstep.training.run_folder import (
    CHECKPOINTS,
    MODEL,
    NONFINITE,
    AtomicCheckpointIO,
    RunFolder,
    compare,
    find_checkpoint,
    flatten,
    resumed_tokenizer,
    tokenizer_of,
)
from fewstep.training.tracking import (
    Monitor,
    StepBar,
    check_wandb,
    default_loggers,
    finish_runs,
    in_own_run,
    place_loggers,
)
from fewstep.training.trainer_settings import check_built, check_trainer, emulates_bfloat16, is_refusal

INTENDED = (
    ".*args parameter is intended.*",  # we parse on behalf of the caller
    ".*in eval mode at the start of training.*",  # a pretrained encoder is frozen
    ".*does not have many workers.*",  # blocks are memory-mapped: a worker would only copy them
    ".*your dataloader is not resumable.*",  # its order follows from the trainer's step
    ".*LeafSpec.*",
    ".*isinstance.treespec.*",
    ".*torch.jit.script.*is deprecated.*",  # by torch's own forward derivatives
)
"""Warnings about what is done on purpose."""


class SaveConfig(SaveConfigCallback):
    """Saves all settings of a run as ``config.yaml`` in its folder, and as wandb's config.

    A run that is resumed keeps the file; its N-th resume writes ``config_resumed_N.yaml``.
    """

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Lightning calls this on rank 0. Only ``fit`` has a run folder."""
        if stage != "fit":
            return
        folder = Path(trainer.default_root_dir)
        file = folder / "config.yaml"
        if self.config.ckpt_path and file.exists():
            file = folder / f"config_resumed_{len(list(folder.glob('config_resumed_*.yaml'))) + 1}.yaml"
        self.parser.save(self.config, file, skip_unset=False, overwrite=True, multifile=False)
        settings = yaml.safe_load(file.read_text(encoding="utf-8"))
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                logger.log_hyperparams(settings)


def _init_parser(**kwargs: Any) -> LightningArgumentParser:
    """A parser whose ``--config`` finds shipped settings by name, with ``--size`` beside it."""
    parser = LightningArgumentParser(**kwargs)
    parser.add_argument("-c", "--config", action=ConfigOption, help="a YAML file, or the name of a shipped one")
    parser.add_argument("--size", action=SizeOption)
    return parser


class FewstepCLI(LightningCLI):
    """LightningCLI with a run folder: checkpoints, logs, samples and the trained model lie under ``--run_dir``."""

    init_parser = staticmethod(_init_parser)

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Those of LightningCLI that the stages have steps for."""
        return {name: skipped for name, skipped in LightningCLI.subcommands().items() if name in ("fit", "validate")}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the run folder and the callbacks, in the order that they are called.

        Those that look at the averaged weights stand before weight averaging, which swaps them out when the validation
        epoch ends; the checkpoints stand after it.
        """
        parser.add_argument("--run_dir", type=str, default="runs/latest", help="folder that this run writes")
        parser.add_argument(
            "--overwrite", action=ActionYesNo, nargs="?", default=False, help="replace an earlier run in run_dir"
        )
        parser.link_arguments("data", "model.init_args.data", apply_on="instantiate")
        parser.add_lightning_class_args(Diagnostics, "diagnostics")
        parser.add_lightning_class_args(SampleTable, "samples")
        parser.add_lightning_class_args(CompiledBlocks, "compile")
        parser.add_lightning_class_args(RecomputedBlocks, "recompute")
        parser.add_lightning_class_args(SkipNonFinite, "nonfinite")
        parser.add_lightning_class_args(WeightAverage, "ema")
        parser.add_lightning_class_args(ResumePoint, "checkpoint")
        parser.set_defaults({"data": {"class_path": "fewstep.training.TextDataModule", "init_args": {}}})
        places = {"nonfinite.folder": NONFINITE, "checkpoint.dirpath": CHECKPOINTS}
        for option, name in {"diagnostics.folder": "", "samples.folder": "", **places}.items():
            parser.link_arguments("run_dir", option, compute_fn=lambda run_dir, name=name: str(Path(run_dir) / name))

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse, check, and find the checkpoint to resume from. Raises ``UserError`` for what does not fit."""
        super().parse_arguments(parser, args)
        config = expand_home(self.config[self.config.subcommand])
        check_settings(config)
        self._note, self._entry = "", None
        if config.ckpt_path is not None:  # before Lightning reads it, whose errors name no remedy
            stage = import_attribute(config.model.class_path, "model.class_path").stage_name
            file, self._entry, self._note = find_checkpoint(config.ckpt_path, Path(config.run_dir), stage)
            config.ckpt_path = str(file)

    def before_instantiate_classes(self) -> None:
        """Check the run folder before anything costs time; take the base model's tokenizer."""
        config = self._settings()
        given = config.model.get("init_args", {})
        models = [given.get(name) for name in ("autoencoder", "teacher", "initialise_from", "language_model")]
        self._folder = RunFolder(
            Path(config.run_dir),
            overwrite=config.overwrite,
            resumed=None if config.ckpt_path is None else Path(config.ckpt_path),
            built_on=[path for path in models if isinstance(path, str)],
        )
        base, data = models[0], config.data.init_args
        if "tokenizer" in data and data.tokenizer is None:
            if isinstance(base, str):
                data.tokenizer = tokenizer_of(base, data.cache_dir)
            elif config.ckpt_path is not None:
                data.tokenizer = resumed_tokenizer(config.ckpt_path, data)
        logs_to_wandb = place_loggers(config.trainer.logger, Path(config.run_dir))
        if self._writes():
            if logs_to_wandb or config.trainer.logger in (None, True):
                check_wandb()
            self._folder.check()

    def instantiate_classes(self) -> None:
        """Build data, model and trainer. Raises ``UserError`` for a value that a constructor refuses."""
        try:
            super().instantiate_classes()
        except ValueError as error:
            raise UserError(parser_message(error)) from error

    # LightningCLI calls it without arguments and offers **kwargs to subclasses only, so none are taken here.
    def instantiate_trainer(self) -> Trainer:  # type: ignore[override]
        """The trainer with this run's folder, loggers and callbacks."""
        config, built = self._settings(), self.config_init[self.subcommand].trainer
        logger, callbacks = in_own_run(built.logger), built.callbacks or []
        if logger in (None, True):
            logs = self.subcommand == "fit" and not config.trainer.fast_dev_run
            logger = default_loggers(Path(config.run_dir)) if logs else False
        callbacks = [Monitor(), *(callbacks if isinstance(callbacks, list) else [callbacks])]
        if config.trainer.enable_progress_bar is not False and not any(isinstance(c, ProgressBar) for c in callbacks):
            # Metrics are read from the device when the bar is drawn: as often as they are logged.
            callbacks.append(StepBar(refresh_rate=config.trainer.log_every_n_steps or 50))
        trainer = super().instantiate_trainer(default_root_dir=config.run_dir, logger=logger, callbacks=callbacks)
        check_built(trainer)
        trainer.strategy.checkpoint_io = AtomicCheckpointIO()
        self.model.check_trainer(trainer)
        self.model.settings = self._plain_settings()
        if self.subcommand == "fit":
            self._begin(trainer)
        if self._note:
            announce(trainer, f"==> {self._note}")
        return trainer

    def _begin(self, trainer: Trainer) -> None:
        """Compare a resumed run with its checkpoint, and open the run folder: nothing is refused after that."""
        config = self._settings()
        if config.diagnostics.measurements is not None:
            from fewstep.training.callbacks.measuring import chosen_measurements

            parts = self.model.saved_model().parts()
            chosen_measurements(self.model.stage_name, config.diagnostics.measurements, parts)
        changes: list[str] = []
        if self._entry is not None:
            changes = compare(self._entry, self.model.run_record(trainer), config.ckpt_path)
        if self._writes():
            self._folder.open()
        if changes:
            announce(trainer, "==> changed since the checkpoint: " + ", ".join(changes))
        if trainer.precision == "bf16-mixed" and emulates_bfloat16():
            announce(trainer, "==> this CPU computes bfloat16 in software: --trainer.precision=32-true trains faster")

    def after_fit(self) -> None:
        """Write the model of a run that ended, over an earlier one, and print where it is."""
        trainer, stage, folder = self.trainer, self.model.stage_name, self._folder.folder / MODEL
        step, last = trainer.global_step, trainer.max_steps
        if not self._writes():
            return
        if step == 0:
            announce(trainer, f"==> {stage}: stopped before the first step, nothing is saved")
            return
        self.model.saved_model().save_pretrained(folder, overwrite=True)
        ended = f"done after {step:,} steps" if step >= last else f"stopped after {step:,} of {last:,} steps"
        resume = "" if step >= last else "; the same command with --ckpt_path last goes on"
        announce(trainer, f"==> {stage}: {ended}; model in {folder}{resume}")

    def _run_subcommand(self, subcommand: str) -> None:
        """Run it; finish the wandb runs that it opened; a folder created for no batch goes again.

        Raises ``TrainingStopped`` if a signal ended it: Lightning leaves by ``SystemExit`` then.
        """
        self.config_init[subcommand].weights_only = True  # no code of a checkpoint is run
        open_before = wandb.run
        try:
            super()._run_subcommand(subcommand)
        except (KeyboardInterrupt, SystemExit):
            if not self.trainer.interrupted:
                raise
            (resume_point,) = (item for item in self.trainer.callbacks if isinstance(item, ResumePoint))  # type: ignore[attr-defined]
            raise resume_point.stopped(self.trainer) from None
        finally:
            finish_runs(self.trainer.loggers, open_before)
            self._folder.close(is_empty=not self.trainer.fit_loop.epoch_loop.batch_progress.total.ready)

    def _plain_settings(self) -> dict[str, Any]:
        """All settings by option, in plain values."""
        settings = yaml.safe_load(self._parser(self.subcommand).dump(self._settings(), skip_unset=False))
        return flatten({name: value for name, value in settings.items() if name != "config"})

    def _settings(self) -> Namespace:
        return self.config[self.subcommand]

    def _writes(self) -> bool:
        """Whether this process writes the run folder: rank 0, unless the run is a trial."""
        is_trial = bool(self._settings().trainer.fast_dev_run)
        return self.subcommand == "fit" and not is_trial and _is_first()


def _is_first() -> bool:
    return getattr(rank_zero_only, "rank", 0) == 0


def check_settings(config: Namespace) -> None:
    """Raise ``UserError`` for settings that Lightning accepts, or refuses without naming them."""
    seed = config.get("seed_everything")
    if not 0 <= (seed or 0) < 2**32:
        raise UserError(f"seed_everything is {seed}: expected a whole number from 0 to {2**32 - 1}")
    check_trainer(config.trainer)
    model, data = config.model.class_path, config.data.class_path
    expected = import_attribute(model, "model.class_path").data_class
    if not issubclass(import_attribute(data, "data.class_path"), expected):
        model, data = (path.rpartition(".")[2] for path in (model, data))
        raise UserError(f"data.class_path is {data}, but {model} trains on {expected.__name__}: give that class")


def main(argv: list[str]) -> int:
    """Train: ``argv`` is ``fit --config NAME_OR_FILE [--size NAME] ...``. Returns the exit code.

    A run that a signal stopped has written a checkpoint; one line says how to resume.
    """
    try:
        run_training(argv)
    except TrainingStopped as stopped:
        if _is_first():
            print("fewstep:", stopped, file=sys.stderr)
        return stopped.exit_code
    return 0


@own_defaults()
def run_training(arguments: list[str]) -> None:
    """Train with ``arguments`` (``fit --config FILE ...``).

    Raises ``UserError`` for a wrong key or value, and ``TrainingStopped`` if a signal ended the run.
    """
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger("lightning.pytorch.profilers").setLevel(logging.INFO)  # a profiler logs its report
    for message in INTENDED:
        warnings.filterwarnings("ignore", message)
    warnings.filterwarnings("ignore", category=DeprecationWarning, module=r"lightning\.pytorch\.cli")
    words = [whole_number(word) for word in arguments]
    for option in ("--trainer.logger=CSVLogger", "--trainer.logger=TensorBoardLogger"):  # without a default folder
        if option in words:
            words.insert(words.index(option) + 1, "--trainer.logger.save_dir=.")
    try:
        FewstepCLI(
            model_class=TrainingModule,
            datamodule_class=StepDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            seed_everything_default=0,
            # Steps only: with a number of epochs Lightning makes the loaders before it restores the step.
            trainer_defaults={"use_distributed_sampler": False, "max_epochs": -1, "enable_model_summary": False},
            save_config_callback=SaveConfig,
            save_config_kwargs={"save_to_log_dir": False, "config_filename": "config.yaml"},
            parser_kwargs={**{name: dict(PARSER) for name in FewstepCLI.subcommands()}, **PARSER},
            auto_configure_optimizers=False,
            args=words,
        )
    except SystemExit as end:  # --help and --print_config
        if end.code not in (None, 0):
            raise
    except ArgumentError as error:
        raise UserError(parser_message(error)) from None
    except Exception as error:
        if not is_refusal(error):
            raise
        raise UserError(parser_message(error)) from error
