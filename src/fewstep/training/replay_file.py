"""A step that failed, on disk: a checkpoint from right before it, with its batches and the run's settings."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning import Trainer

from fewstep.errors import UserError
from fewstep.training.checkpoint_files import save_whole
from fewstep.training.module import Batch, TrainingModule
from fewstep.weights import load_checkpoint

REPLAY_KEY = "fewstep_replay"
"""Key under which such a checkpoint carries its step."""
SETTINGS_FILE = "config.yaml"
"""The settings of a run, in its folder."""


@dataclass(frozen=True)
class ReplayedStep:
    """An optimizer step of the process ``rank`` of ``world_size``, whose ``batches`` are all that it accumulated over.

    ``number`` is that of the step, ``settings`` the run's YAML.
    """

    number: int
    rank: int
    world_size: int
    batches: tuple[Batch, ...]
    settings: str

    @property
    def ranks(self) -> tuple[int, int]:
        """The process and the number of them."""
        return self.rank, self.world_size


def replay_file(folder: Path, number: int, rank: int) -> Path:
    """Where a process writes the step ``number``."""
    return folder / f"step-{number}-rank-{rank}.ckpt"


def save_replay(file: Path, trainer: Trainer, module: TrainingModule, batches: Sequence[Batch]) -> Path:
    """Write the step that is under way to ``file``, from the process that is called; returns the file.

    Raises ``UserError`` where it cannot be written.
    """
    checkpoint = trainer._checkpoint_connector.dump_checkpoint(weights_only=False)
    settings = Path(trainer.default_root_dir) / SETTINGS_FILE
    checkpoint[REPLAY_KEY] = {
        "number": trainer.global_step,
        "rank": module.global_rank,
        "world_size": trainer.world_size,
        "batches": [{name: value.detach().cpu() for name, value in batch.items()} for batch in batches],
        "settings": settings.read_text(encoding="utf-8") if settings.is_file() else "",
    }
    save_whole(checkpoint, file)
    return file


def read_replay(file: Path) -> ReplayedStep:
    """Read what :func:`save_replay` wrote. Raises ``UserError`` where the file is none, or lacks the settings."""
    if not file.is_file():
        raise UserError(f"{file} does not exist: give a file that a stopped run left in its folder nonfinite/")
    entry = load_checkpoint(file).get(REPLAY_KEY)
    if not isinstance(entry, dict):
        raise UserError(f"{file} holds no step to replay: give a file that a stopped run left in its folder nonfinite/")
    if not entry["settings"]:
        raise UserError(f"{file} was written without a run's settings: replay it in the program that trained")
    number, rank, world_size = entry["number"], entry["rank"], entry["world_size"]
    return ReplayedStep(number, rank, world_size, tuple(entry["batches"]), entry["settings"])


def names_of_nonfinite(tensors: dict[str, Any]) -> tuple[str, ...]:
    """Names of the tensors in which a number is NaN or infinite; None and whole numbers count as finite."""
    return tuple(
        name
        for name, tensor in tensors.items()
        if tensor is not None and tensor.is_floating_point() and not bool(torch.isfinite(tensor).all())
    )
