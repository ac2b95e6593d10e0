"""CSV and wandb: offline unless there is a key."""

import os
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import getproxies

import wandb
from lightning.pytorch.loggers import CSVLogger, Logger, WandbLogger

from fewstep.errors import UserError

PROBE_SECONDS = 10.0


def default_loggers(run_dir: str | Path) -> list[Logger]:
    """A CSV logger in ``run_dir/csv``, and wandb in ``run_dir``.

    wandb is online if there is an API key, else offline; ``WANDB_MODE`` overrides it, and with ``disabled`` there is no
    wandb logger. A resumed run writes the next ``csv/version_N``.
    """
    run_dir = Path(run_dir)
    # Flushed at every row, so that what a killed process leaves is complete.
    loggers: list[Logger] = [CSVLogger(run_dir, name="csv", flush_logs_every_n_steps=1)]
    mode = wandb_mode()
    if mode == "disabled":
        return loggers
    offline = mode == "offline"
    settings = wandb.Settings(silent=offline, console="off")
    logger = WandbLogger(name=run_dir.name, project="fewstep", save_dir=run_dir, offline=offline, settings=settings)
    logger._wandb_init.pop("anonymous", None)  # Lightning passes on an option that wandb has deprecated
    return [*loggers, logger]


def wandb_mode() -> str:
    """ "online", "offline" or "disabled": ``WANDB_MODE`` if it is set, else online if there is an API key."""
    mode = os.environ.get("WANDB_MODE", "")
    if mode == "disabled":
        return mode
    return "offline" if mode in ("offline", "dryrun") or (mode == "" and not _has_key()) else "online"


def check_wandb() -> None:
    """Raise ``UserError`` if a run would go to wandb's server and that does not answer.

    wandb itself retries for a minute and a half, after the run's folder was created. Behind a proxy nothing is tried.
    """
    if wandb_mode() != "online" or getproxies():
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
    for logger in default_loggers(folder):
        if isinstance(logger, WandbLogger):
            for name, (columns, rows) in tables.items():
                logger.log_table(name, columns=list(columns), data=[list(row) for row in rows])
            for name, file in figures.items():
                logger.log_image(name, [str(file)])
            logger.experiment.summary.update(dict(summary or {}))
            finish_wandb()
            return True
    return False


def finish_wandb() -> None:
    """End this process's wandb run if there is one, so that the next stage starts its own."""
    if wandb.run is not None:
        wandb.finish()


def _has_key() -> bool:
    if os.environ.get("WANDB_API_KEY"):
        return True
    netrc = Path(os.environ.get("NETRC", "~/.netrc")).expanduser()
    return netrc.is_file() and "wandb" in netrc.read_text(errors="replace")
