"""Checkpoint files: written whole or not at all, with the one before kept, and found again after a torn write."""

import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO

from fewstep.errors import UserError
from fewstep.weights import flush, load_checkpoint

LAST, PREVIOUS, SET_ASIDE = "last.ckpt", "previous.ckpt", "set_aside.ckpt"
"""The newest checkpoint of a run, the one before it, and a newest one that the run did not go on from."""
PARTIAL = ".partial"
"""How the name of a file that is being written ends."""


class WholeCheckpointIO(TorchCheckpointIO):
    """Lightning's checkpoint writer with :func:`save_whole` in place of its own, which does not flush to the disk."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        """Write ``checkpoint`` to ``path``. Raises ``UserError`` as :func:`save_whole` does."""
        save_whole(checkpoint, Path(path))


@dataclass(frozen=True)
class FoundCheckpoint:
    """A checkpoint that can be read: its ``file``, its ``content``, and what there is to say of it, if anything."""

    file: Path
    content: dict[str, Any]
    note: str = ""


def save_whole(checkpoint: dict[str, Any], file: Path) -> None:
    """Write a checkpoint under another name, flush it to the disk and give it its name (this project's definition).

    Whenever the process or the machine stops, a whole checkpoint is there as soon as one was: what stood at
    ``last.ckpt`` becomes ``previous.ckpt``. Raises ``UserError`` where the disk refuses; nothing is lost then.
    """
    partial = file.with_name(f".{file.name}.{os.getpid()}{PARTIAL}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as stream:
            torch.save(checkpoint, stream)
            stream.flush()
            os.fsync(stream.fileno())
        if file.name == LAST and file.exists():
            _keep(file)
        os.replace(partial, file)
        with suppress(OSError):  # not every file system can do that for a folder
            flush(file.parent)
    except (OSError, RuntimeError) as error:
        # torch tells of a write that failed by a RuntimeError with the reason behind it.
        reason = error if isinstance(error, OSError) else error.__context__
        if not isinstance(reason, OSError):
            raise
        raise UserError(cannot_write(file, reason)) from None
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)


def _keep(newest: Path) -> None:
    """Give ``last.ckpt`` the name ``previous.ckpt`` as well, so that at no moment it has none."""
    second_name = newest.with_name(f".{PREVIOUS}.{os.getpid()}{PARTIAL}")
    try:
        second_name.unlink(missing_ok=True)
        os.link(newest, second_name)
    except OSError:  # a file system without second names: for a moment the newest is the one before
        os.replace(newest, second_name)
    os.replace(second_name, newest.with_name(PREVIOUS))


def cannot_write(place: Path, error: OSError) -> str:
    """The line for a file or folder of a run that could not be written."""
    return (
        f"cannot write {place}: {error.strerror or error}; earlier checkpoints are as they were: make room or mend the "
        "folder, then go on by --ckpt_path last"
    )


def newest_whole(folder: Path) -> FoundCheckpoint | None:
    """The newest checkpoint of ``folder`` that can be read whole; None where there is none at all.

    Raises ``UserError`` where all that are there are damaged.
    """
    reasons = []
    for file in (folder / LAST, folder / PREVIOUS):
        if not file.is_file():
            reasons.append(f"{file} is missing")
            continue
        try:
            content = load_checkpoint(file)
        except UserError as error:
            reasons.append(str(error))
            continue
        step = content.get("global_step")
        note = f"{reasons[0]}; going on from the one before it, {file}, of step {step}" if reasons else ""
        return FoundCheckpoint(file, content, note)
    if (folder / LAST).is_file() or (folder / PREVIOUS).is_file():
        raise UserError("; ".join(reasons))
    return None


def clear_leftovers(folder: Path, used: Path) -> None:
    """Remove what killed writes left in a run's ``folder`` of checkpoints, for a run that goes on from ``used``.

    Where that is not ``last.ckpt``, which cannot be read then or was not wanted, ``last.ckpt`` is moved to
    ``set_aside.ckpt``: the next write would put it in the place of the one before it.
    """
    with suppress(OSError):
        for partial in folder.glob(f".*{PARTIAL}"):
            partial.unlink()
        newest = folder / LAST
        if newest.exists() and used.resolve() != newest.resolve():
            os.replace(newest, folder / SET_ASIDE)
