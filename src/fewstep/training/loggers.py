"""wandb, offline unless a key is there, and always a CSV beside it."""

import os
from pathlib import Path

from lightning.pytorch.loggers import CSVLogger, Logger, WandbLogger


def default_loggers(run_dir: str | Path, project: str = "fewstep") -> list[Logger]:
    """A CSV logger in ``run_dir/csv``, and wandb in ``run_dir``.

    wandb is online where an API key is set, else offline. ``WANDB_MODE`` decides where it is set; with ``disabled``
    there is no wandb logger at all, so that nothing is left behind.
    """
    run_dir = Path(run_dir)
    loggers: list[Logger] = [CSVLogger(run_dir, name="csv")]
    mode = os.environ.get("WANDB_MODE", "")
    if mode == "disabled":
        return loggers
    offline = mode in ("offline", "dryrun") or (mode == "" and not _has_key())
    run_dir.mkdir(parents=True, exist_ok=True)
    loggers.append(WandbLogger(name=run_dir.name, project=project, save_dir=run_dir, offline=offline))
    return loggers


def _has_key() -> bool:
    if os.environ.get("WANDB_API_KEY"):
        return True
    netrc = Path(os.environ.get("NETRC", "~/.netrc")).expanduser()
    return netrc.is_file() and "wandb" in netrc.read_text(errors="replace")
