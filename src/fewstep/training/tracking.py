"""What a run shows and where it is logged: its bar and speed, its CSV file, wandb by its environment variables."""

import os
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

import torch
import wandb
from jsonargparse import Namespace
from lightning import Callback, Trainer
from lightning.pytorch.callbacks import TQDMProgressBar
from lightning.pytorch.callbacks.progress.tqdm_progress import Tqdm
from lightning.pytorch.loggers import CSVLogger, Logger, WandbLogger
from lightning.pytorch.loggers.logger import rank_zero_experiment

from fewstep.errors import UserError
from fewstep.training.data_modules import Batch
from fewstep.training.module import announce, ends_logged_step

PROBE_SECONDS = 10.0
TRUE = ("1", "true", "yes", "on")


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

    Real tokens of all ranks since the last log over wall-clock time without validation. The count is read when it is
    logged; Lightning's ``ThroughputMonitor`` syncs the device at every step.
    """

    def __init__(self) -> None:
        self._count: torch.Tensor | int = 0
        self._started = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        """Print the summary and start counting."""
        count = sum(parameter.numel() for parameter in pl_module.parameters() if parameter.requires_grad)
        data, start = pl_module.data, trainer.global_step
        size = data.batch_size * trainer.world_size * trainer.accumulate_grad_batches
        resumed = f", going on from step {start:,}" if start else ""
        lines = [f"{trainer.max_steps:,} steps of {size:,} {data.example_name}{resumed}", *data.report().splitlines()]
        if not trainer.fast_dev_run:  # type: ignore[attr-defined]
            lines.append(f"writes {trainer.default_root_dir}")
        announce(trainer, f"==> {pl_module.stage_name}: {count:,} parameters, " + "\n    ".join(lines))
        self._restart()

    def on_validation_end(self, trainer: Trainer, pl_module: Any) -> None:
        """Leave the time of a validation out."""
        self._restart()

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Batch, batch_idx: int) -> None:
        """Count, and log every ``log_every_n_steps``."""
        self._count = self._count + pl_module.data.units_in(batch)
        if ends_logged_step(trainer, batch_idx):
            count, seconds = int(self._count) * trainer.world_size, time.perf_counter() - self._started
            pl_module.log(f"train/{pl_module.data.unit}_per_second", count / max(seconds, 1e-9))
            self._restart()

    def _restart(self) -> None:
        self._count, self._started = 0, time.perf_counter()


class RunLogger(WandbLogger):
    """wandb in a run of its own: one that the user has open is neither logged into nor finished.

    The exception is the run that is open for a sweep's agent: its job is this training. What the settings leave out
    follows wandb's environment variables, then the API key: without one the run is offline.
    """

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The wandb run, created on first use: a command that is refused before leaves no trace."""
        if self._experiment is None:
            options = {name: value for name, value in self._wandb_init.items() if value is not None}
            options.setdefault("mode", "offline" if self._offline else wandb_mode())
            options.setdefault("settings", wandb.Settings(silent=options["mode"] == "offline", console="off"))
            of_sweep = wandb.run if os.environ.get("WANDB_SWEEP_ID") else None
            self._experiment = of_sweep or wandb.init(**{**options, "reinit": "create_new"})
            self._experiment.define_metric("trainer/global_step")
            self._experiment.define_metric("*", step_metric="trainer/global_step", step_sync=True)
        return self._experiment


def default_loggers(run_dir: Path) -> list[Logger]:
    """A CSV logger in ``run_dir/csv``, and wandb in ``run_dir`` unless its environment variables say otherwise."""
    # Flushed at every row, so that what a killed process leaves is complete.
    loggers: list[Logger] = [CSVLogger(run_dir, name="csv", flush_logs_every_n_steps=1)]
    return loggers if wandb_mode() == "disabled" else [*loggers, _run_logger(run_dir)]


def place_loggers(loggers: Any, run_dir: Path) -> bool:
    """Put the loggers of the settings that name no folder into ``run_dir``; returns whether wandb is among them."""
    given = loggers if isinstance(loggers, list) else [loggers]
    given = [logger for logger in given if isinstance(logger, Namespace)]
    for logger in given:
        options, is_wandb = logger.init_args, logger.class_path.endswith(".WandbLogger")
        if is_wandb:
            options.project = options.project or _project()
        if options.get("save_dir", "") in (None, "."):
            options.save_dir = _wandb_folder(run_dir) if is_wandb else str(run_dir)
    return any(logger.class_path.endswith(".WandbLogger") for logger in given)


def in_own_run(loggers: Any) -> Any:
    """``loggers`` as Lightning takes them, its wandb logger replaced by :class:`RunLogger`."""
    for logger in loggers if isinstance(loggers, list) else [loggers]:
        if type(logger) is WandbLogger:
            logger.__class__ = RunLogger  # it has been given wandb's options, which no constructor takes back
    return loggers


def _run_logger(folder: Path) -> RunLogger:
    name = None if os.environ.get("WANDB_NAME") else folder.name
    return RunLogger(name=name, save_dir=_wandb_folder(folder), project=_project())


def _project() -> str:
    return os.environ.get("WANDB_PROJECT") or "fewstep"


def _wandb_folder(run_dir: Path) -> str:
    return os.environ.get("WANDB_DIR") or str(run_dir)


def finish_runs(loggers: Sequence[Logger], open_before: Any) -> None:
    """Finish the wandb runs of ``loggers``, except the one that the user had open before."""
    for logger in loggers:
        run = logger._experiment if isinstance(logger, WandbLogger) else None
        if run is not None and run is not open_before:
            run.finish()


def wandb_mode() -> str:
    """ "online", "offline" or "disabled": by ``WANDB_DISABLED`` and ``WANDB_MODE``, else online with an API key.

    The variable is rewritten as wandb spells it, which fails at "OFFLINE". Raises ``UserError`` for a mode that
    wandb does not have.
    """
    given = os.environ.pop("WANDB_MODE", "")
    mode = given.strip().lower()
    mode = {"dryrun": "offline", "run": "online"}.get(mode, mode)  # wandb's earlier names
    if mode not in ("", "online", "offline", "disabled", "shared"):
        raise UserError(f"WANDB_MODE is {given!r}: expected online, offline or disabled")
    if mode:
        os.environ["WANDB_MODE"] = mode
    if os.environ.get("WANDB_DISABLED", "").strip().lower() in TRUE:
        return "disabled"
    if mode:
        return mode
    netrc = Path(os.environ.get("NETRC", "~/.netrc")).expanduser()
    is_in_netrc = netrc.is_file() and "wandb" in netrc.read_text(errors="replace")
    return "online" if is_in_netrc or os.environ.get("WANDB_API_KEY") else "offline"


def check_wandb() -> None:
    """Raise ``UserError`` if a run would go to wandb's server and that does not answer.

    wandb itself retries for a minute and a half, after the run's folder was created. Behind a proxy nothing is tried.
    """
    if wandb_mode() not in ("online", "shared") or getproxies():
        return
    server = urlsplit(wandb.setup().settings.base_url)
    port = server.port or (80 if server.scheme == "http" else 443)
    try:
        socket.create_connection((server.hostname or "", port), PROBE_SECONDS).close()
    except OSError as error:
        raise UserError(
            f"wandb cannot be reached at {server.hostname}:{port} ({error.strerror or error}): set WANDB_MODE=offline "
            "and upload later by `wandb sync`, or WANDB_MODE=disabled"
        ) from None


def log_study(
    folder: Path,
    tables: Mapping[str, tuple[Sequence[str], Sequence[Sequence[str]]]],
    figures: Mapping[str, Path],
    summary: Mapping[str, str] | None = None,
) -> bool:
    """Log the results of a command as a wandb run of its own, kept in ``folder``; False if wandb is disabled.

    ``tables`` are columns and rows by name, ``figures`` PNG files by name.
    """
    if wandb_mode() == "disabled":
        return False
    open_before, logger = wandb.run, _run_logger(folder)
    for name, (columns, rows) in tables.items():
        logger.log_table(name, columns=list(columns), data=[list(row) for row in rows])
    for name, file in figures.items():
        logger.log_image(name, [str(file)])
    logger.experiment.summary.update(dict(summary or {}))
    finish_runs([logger], open_before)
    return True
