"""A step that failed, on disk: a checkpoint from right before it, with its batches and the run's settings."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning import Trainer

from fewstep.errors import UserError
from fewstep.evaluation.processes import Processes
from fewstep.training.checkpoint_files import save_whole
from fewstep.training.module import Batch
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


def save_replay(folder: Path, trainer: Trainer, batches: Sequence[Batch], is_bad: bool) -> Path:
    """Write the step that is under way to ``folder``, with the ``batches`` of the first process in one file, and with
    those of every other process that says its own ones are bad (``is_bad``) in further ones.

    Every process calls it, for weights may lie in parts; the first one writes. Returns the file with the process's own
    batches, the first one's where there is none. Raises ``UserError`` where they cannot be written.
    """
    own = [{name: value.detach().cpu() for name, value in batch.items()} for batch in batches]
    processes = Processes(trainer.global_rank, trainer.world_size)
    steps = processes.gather([(trainer.global_rank, own)] if is_bad or trainer.global_rank == 0 else [])
    checkpoint = trainer._checkpoint_connector.dump_checkpoint(weights_only=False)
    settings = Path(trainer.default_root_dir) / SETTINGS_FILE
    try:
        for rank, of_rank in steps:
            checkpoint[REPLAY_KEY] = {
                "number": trainer.global_step,
                "rank": rank,
                "world_size": trainer.world_size,
                "batches": of_rank,
                "settings": settings.read_text(encoding="utf-8") if settings.is_file() else "",
            }
            save_whole(checkpoint, replay_file(folder, trainer.global_step, rank))
    finally:
        processes.from_first(None)  # the others end the run only when the files are there
    return replay_file(folder, trainer.global_step, trainer.global_rank if is_bad else 0)


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
