"""The folder of a run: what lies where, and what may be replaced."""

import shutil
from collections.abc import Sequence
from pathlib import Path

from fewstep.data import tokenizer_fingerprint
from fewstep.data.cache import cached_folder
from fewstep.errors import UserError
from fewstep.model import kind_of
from fewstep.storage import CHECKPOINT_KEY, load_checkpoint, locate, read_model, recover_folder
from fewstep.training.checkpoint_files import LAST, FoundCheckpoint, clear_leftovers, newest_whole

CHECKPOINTS, MODEL, NONFINITE = "checkpoints", "model", "nonfinite"
REPLACED = (
    CHECKPOINTS,
    MODEL,
    NONFINITE,
    "csv",
    "samples.jsonl",
    "noise_robustness.json",
    "noise_robustness.png",
    "diagnostics.jsonl",
    "diagnostics",
)
"""What ``--overwrite`` removes. Offline wandb runs stay: they may not have been uploaded yet."""


def checkpoint_folder(run_dir: str) -> str:
    """Where a run keeps its checkpoints."""
    return str(Path(run_dir) / CHECKPOINTS)


def nonfinite_folder(run_dir: str) -> str:
    """Where a run leaves steps whose loss or gradient was not finite."""
    return str(Path(run_dir) / NONFINITE)


def resolve_checkpoint(ckpt_path: str, run_dir: Path, stage: str) -> FoundCheckpoint:
    """The checkpoint that ``ckpt_path`` ("last" or a file) means; "last" is the newest of the run that is whole.

    Raises ``UserError`` where there is none, where it cannot be read, or where it is of another stage than ``stage``.
    """
    folder = run_dir / CHECKPOINTS
    if ckpt_path == "last":
        found = newest_whole(folder)
        if found is None:
            raise UserError(
                f"--ckpt_path last: there is no {folder / LAST} to go on from; leave --ckpt_path out to start anew"
            )
    else:
        file = Path(ckpt_path).expanduser()
        if not file.is_file():
            raise UserError(f"--ckpt_path {ckpt_path}: no such file; give a .ckpt file, or last for the run's own")
        found = FoundCheckpoint(file, load_checkpoint(file))
    trained = found.content.get(CHECKPOINT_KEY, {}).get("stage")
    if trained != stage:
        raise UserError(
            f"--ckpt_path {found.file} is a checkpoint of the stage {trained!r}, but this run trains {stage!r}"
        )
    return found


def tidy_run_folder(run_dir: Path, used: Path) -> None:
    """Put right what a killed process left in the folder of a run that goes on from the checkpoint ``used``.

    For the one process that holds the folder's lock.
    """
    clear_leftovers(run_dir / CHECKPOINTS, used)
    recover_folder(run_dir / MODEL)


def prepare_run_folder(run_dir: Path, *, overwrite: bool, built_on: Sequence[str] = ()) -> None:
    """Make the folder of a new run, and with ``overwrite`` remove what an earlier one left.

    ``built_on`` are the models that the run builds on, which are never removed. Raises ``UserError`` where the folder
    holds a run and ``overwrite`` is off, where it holds one of them, or where it cannot be written.
    """
    check_run_folder(run_dir, overwrite=overwrite, built_on=built_on)
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        for name in REPLACED:
            path = run_dir / name
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
        (run_dir / CHECKPOINTS).mkdir()
    except OSError as error:
        raise UserError(f"--run_dir {run_dir} cannot be written ({error.strerror}): choose another folder") from None


def check_run_folder(run_dir: Path, *, overwrite: bool, built_on: Sequence[str] = ()) -> None:
    """Raise as :func:`prepare_run_folder` does, without touching anything."""
    if run_dir.exists() and not run_dir.is_dir():
        raise UserError(f"--run_dir {run_dir} is a file: choose another place for the run's folder")
    if not (run_dir / MODEL).exists() and not any((run_dir / CHECKPOINTS).glob("*")):
        return
    if not overwrite:
        raise UserError(
            f"--run_dir {run_dir} holds an earlier run: go on with it by --ckpt_path last, choose another folder, "
            "or replace it by --overwrite"
        )
    for base in built_on:
        if run_dir.resolve() in Path(base).expanduser().resolve().parents:
            raise UserError(
                f"--run_dir {run_dir} holds the model {base} that this run builds on: choose another folder"
            )


def tokenizer_of(base: str, cache_dir: str) -> str:
    """Folder of the tokenizer in a text model's folder, checkpoint or hub name; a checkpoint's is written to the cache.

    Raises ``UserError`` where ``base`` is none of them.
    """
    path = locate(base)
    if (kind := kind_of(path)) != "text":
        raise UserError(f"{base} holds a model of {kind}, expected one of text: give a model trained on text")
    if not path.is_file():
        return str(path / "tokenizer")
    tokenizer = read_model(path).tokenizer
    assert tokenizer is not None

    def write(folder: Path) -> None:
        tokenizer.save_pretrained(folder)

    key = f"tokenizer-{tokenizer_fingerprint(tokenizer)}"
    root = Path(cache_dir).expanduser()
    # Several processes may come here at once: the cache lets one write and the others wait.
    return str(cached_folder(root, key, lambda folder: any(folder.glob("*.json")), write))
