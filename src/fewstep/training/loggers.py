"""wandb, offline unless a key is there, and always a CSV beside it."""

import os
import socket
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import getproxies

import wandb
from lightning.pytorch.loggers import CSVLogger, Logger, WandbLogger

from fewstep.errors import UserError

PROBE_SECONDS = 10.0


def default_loggers(run_dir: str | Path, project: str = "fewstep") -> list[Logger]:
    """A CSV logger in ``run_dir/csv``, and wandb in ``run_dir``.

    wandb is online where an API key is set, else offline. ``WANDB_MODE`` decides where it is set; with ``disabled``
    there is no wandb logger at all, so that nothing is left behind. A resumed run writes the next ``csv/version_N``.
    """
    run_dir = Path(run_dir)
    # Flushed at every row: what a killed process leaves is then complete.
    loggers: list[Logger] = [CSVLogger(run_dir, name="csv", flush_logs_every_n_steps=1)]
    mode = wandb_mode()
    if mode == "disabled":
        return loggers
    offline = mode == "offline"
    run_dir.mkdir(parents=True, exist_ok=True)
    settings = wandb.Settings(silent=offline, console="off")
    logger = WandbLogger(name=run_dir.name, project=project, save_dir=run_dir, offline=offline, settings=settings)
    # Lightning hands over, unset, a setting that wandb has given up, and wandb warns of it in every run.
    logger._wandb_init.pop("anonymous", None)
    return [*loggers, logger]


def wandb_mode() -> str:
    """ "online", "offline" or "disabled": what ``WANDB_MODE`` says; where it says nothing, online if a key is there."""
    mode = os.environ.get("WANDB_MODE", "")
    if mode == "disabled":
        return mode
    return "offline" if mode in ("offline", "dryrun") or (mode == "" and not _has_key()) else "online"


def check_wandb() -> None:
    """Raise ``UserError`` where a run would go to wandb's server and that does not answer.

    wandb itself would try again for a minute and a half, after the run's folder was made. Behind a proxy nothing is
    tried.
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


def finish_wandb() -> None:
    """End the wandb run of this process, where there is one, so that the next stage starts its own."""
    if wandb.run is not None:
        wandb.finish()


def _has_key() -> bool:
    if os.environ.get("WANDB_API_KEY"):
        return True
    netrc = Path(os.environ.get("NETRC", "~/.netrc")).expanduser()
    return netrc.is_file() and "wandb" in netrc.read_text(errors="replace")
