"""The folder of a run: its lock, what may be replaced, its checkpoints, and which run may resume from one."""

import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO
from torch import nn

from fewstep.data.corpus import prepared_tokenizer
from fewstep.data.sources import CorpusSettings
from fewstep.data.tokenizer import tokenizer_fingerprint
from fewstep.errors import UserError
from fewstep.locking import LOCK_FILE, PARTIAL, FolderLock, cached_folder, draft_of, put_in_place
from fewstep.model import kind_of
from fewstep.registry import validated
from fewstep.shapes import tensors_digest
from fewstep.storage import CHECKPOINT_KEY, load_checkpoint, locate, read_model, recover_folder

CHECKPOINTS, MODEL, NONFINITE = "checkpoints", "model", "nonfinite"
LAST, PREVIOUS, SET_ASIDE = "last.ckpt", "previous.ckpt", "set_aside.ckpt"
"""The newest checkpoint, the one before it, and a newest one that a resumed run did not start from."""
REPLACED = (CHECKPOINTS, MODEL, NONFINITE, "csv", "samples.jsonl", "diagnostics.jsonl", "diagnostics")
"""What ``--overwrite`` removes. Offline wandb runs stay: they may not be uploaded yet."""

BASE = "model.autoencoder"
"""The option of a stage that names the frozen parts of earlier stages."""
BATCHES = "trainer.accumulate_grad_batches x processes"
"""What stands for the settings of accumulation, devices and nodes: the batches of an optimizer step on all ranks."""
IGNORED = (
    *("run_dir", "overwrite", "ckpt_path", "data.source", "data.tokenizer", "data.cache_dir"),
    *("model.autoencoder", "model.teacher", "model.initialise_from", "model.language_model", "model.allow"),
)
"""Settings of one start of a run, and names of files and folders, whose content is compared by its fingerprint."""
DECIDES_ROWS_AND_MODEL = ("data.", "model.", "seed_everything", BATCHES)
MAY_CHANGE = ("model.optimizer.", "data.num_workers", "data.num_validation_")
"""Exceptions to the line above; whatever else is not in it may change too."""
ADVICE = {
    "data.source": "give the text as it was, or start a new run",
    "data.tokenizer": "leave --data.tokenizer out, the checkpoint has its own",
    "model.autoencoder": "give the checkpoint itself as --model.autoencoder, which holds what it was trained on",
}


@dataclass
class RunFolder:
    """The folder of one run, locked while the run trains.

    ``resumed`` is the checkpoint that the run starts from; if it lies in the folder, the content is this run's.
    ``built_on`` are the models that the run loads: a folder that holds one of them is never overwritten.
    """

    folder: Path
    overwrite: bool
    resumed: Path | None
    built_on: Sequence[str]

    def __post_init__(self) -> None:
        self.continues = self.resumed is not None and self.folder.resolve() in self.resumed.resolve().parents
        self._lock = FolderLock(self.folder, "--run_dir")
        self._is_new = False

    def check(self) -> None:
        """Raise ``UserError`` for a folder that is in use or may not be overwritten. Creates nothing."""
        with FolderLock(self.folder, "--run_dir") if (self.folder / LOCK_FILE).exists() else nullcontext():
            self._check_content()

    def open(self) -> None:
        """Lock the folder; clean up after a killed process, or create it for a new run."""
        self._is_new = not self.folder.exists()
        self._lock.acquire()
        if self.continues:
            self._clean_up()
        else:
            self._create()

    def close(self, *, is_empty: bool) -> None:
        """Release the lock, and remove a folder that this run created for nothing."""
        if self._is_new and is_empty:
            shutil.rmtree(self.folder, ignore_errors=True)
        self._lock.release()

    def _check_content(self) -> None:
        folder = self.folder
        if folder.exists() and not folder.is_dir():
            raise UserError(f"--run_dir {folder} is a file: choose another place for the run's folder")
        is_empty = not (folder / MODEL).exists() and not any((folder / CHECKPOINTS).glob("*"))
        if is_empty or self.continues:
            return
        if not self.overwrite:
            raise UserError(
                f"--run_dir {folder} holds an earlier run: go on with it by --ckpt_path last, choose another folder, "
                "or replace it by --overwrite"
            )
        for model in self.built_on:
            if folder.resolve() in Path(model).expanduser().resolve().parents:
                raise UserError(
                    f"--run_dir {folder} holds the model {model} that this run builds on: choose another folder"
                )

    def _create(self) -> None:
        for path in (*(self.folder / name for name in REPLACED), *self.folder.glob("config_resumed_*.yaml")):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
        (self.folder / CHECKPOINTS).mkdir()

    def _clean_up(self) -> None:
        """Remove what killed writes left, and set a ``last.ckpt`` aside that the run does not resume from."""
        newest = self.folder / CHECKPOINTS / LAST
        with suppress(OSError):
            for partial in newest.parent.glob(f".*{PARTIAL}"):
                partial.unlink()
            if self.resumed is not None and newest.exists() and self.resumed.resolve() != newest.resolve():
                newest.replace(newest.with_name(SET_ASIDE))
        recover_folder(self.folder / MODEL)


def find_checkpoint(ckpt_path: str, run_dir: Path, stage: str) -> tuple[Path, dict[str, Any], str]:
    """The checkpoint that ``ckpt_path`` ("last" or a file) names, its entry, and a note if it is not the run's newest.

    "last" is ``last.ckpt``, or ``previous.ckpt`` if that is missing or damaged. Raises ``UserError`` if it is missing,
    damaged, or of another stage than ``stage``.
    """
    own = [run_dir / CHECKPOINTS / name for name in (LAST, PREVIOUS)]
    files = own if ckpt_path == "last" else [Path(ckpt_path).expanduser()]
    if not any(file.is_file() for file in files):
        raise UserError(
            f"--ckpt_path {ckpt_path}: there is no {files[0]}; give a .ckpt file, or last for the run's own, or leave "
            "--ckpt_path out to start from scratch"
        )
    problems: list[UserError] = []
    for file in files:
        try:
            content = load_checkpoint(file)
            break
        except UserError as error:
            problems.append(error)
    else:
        raise problems[0]
    entry, step = content.get(CHECKPOINT_KEY, {}), content.get("global_step")
    if (trained := entry.get("stage")) != stage:
        raise UserError(f"--ckpt_path {file} is a checkpoint of the stage {trained!r}, but this run trains {stage!r}")
    note = f"{problems[0]}; going on from the one before it, {file}, of step {step}" if problems else ""
    return file, entry, note


class AtomicCheckpointIO(TorchCheckpointIO):
    """Lightning's checkpoint writer, but atomic and with one predecessor."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        """Write under another name, ``fsync``, rename; ``last.ckpt`` becomes ``previous.ckpt``.

        At every moment both names stand for whole checkpoints; if the disk refuses (``UserError``), nothing is lost.
        """
        file = Path(path)
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            with draft_of(file) as draft:
                with draft.open("wb") as stream:
                    torch.save(checkpoint, stream)
                if file.name == LAST and file.exists():
                    _link(file, file.with_name(PREVIOUS))
                put_in_place(draft, file)
        except (OSError, RuntimeError) as error:
            # torch reports a failed write as a RuntimeError with the reason as its context.
            reason = error if isinstance(error, OSError) else error.__context__
            if not isinstance(reason, OSError):
                raise
            raise UserError(
                f"cannot write {file}: {reason.strerror or reason}; earlier checkpoints are intact: make room, then go "
                "on by --ckpt_path last"
            ) from None


def _link(last: Path, previous: Path) -> None:
    """Give a file a second name, so that there is a ``last.ckpt`` at every moment."""
    previous.unlink(missing_ok=True)
    try:
        previous.hardlink_to(last)
    except OSError:  # a file system without hard links
        last.replace(previous)


def resumed_tokenizer(checkpoint: str, data: Any) -> str | None:
    """The folder of the tokenizer for a resumed run with the settings ``data``; None: the one of its prepared corpus.

    No tokenizer is trained again: the text may have changed.
    """
    settings = CorpusSettings(**{field.name: data[field.name] for field in fields(CorpusSettings)})
    prepared, own = prepared_tokenizer(settings), read_model(Path(checkpoint)).tokenizer
    assert own is not None
    if prepared is not None and tokenizer_fingerprint(prepared) == tokenizer_fingerprint(own):
        return None
    return tokenizer_of(checkpoint, settings.cache_dir)


def tokenizer_of(model: str, cache_dir: str) -> str:
    """The folder with the tokenizer of a text model; that of a checkpoint is written to the cache.

    Raises ``UserError`` if ``model`` is no model folder, checkpoint or hub name.
    """
    path = locate(model)
    if (kind := kind_of(path)) != "text":
        raise UserError(f"{model} holds a model of {kind}, expected one of text: give a model trained on text")
    if not path.is_file():
        return str(path / "tokenizer")
    tokenizer = read_model(path).tokenizer
    assert tokenizer is not None
    root, key = Path(cache_dir).expanduser(), f"tokenizer-{tokenizer_fingerprint(tokenizer)}"
    save: Callable[[Path], Any] = tokenizer.save_pretrained
    # Several processes may ask at once: the cache lets one write and the others wait.
    return str(cached_folder(root, key, lambda folder: any(folder.glob("*.json")), save))


@dataclass(frozen=True)
class RunRecord:
    """What decides a run: ``settings`` by option, and ``fingerprints`` (hex digits) of what options name."""

    settings: dict[str, Any]
    fingerprints: dict[str, str]


def flatten(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by the names of their options, such as ``model.optimizer.learning_rate``."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        place = prefix if name == "init_args" else f"{prefix}{name}."
        flat |= flatten(value, place) if isinstance(value, Mapping) else {place.removesuffix("."): value}
    return flat


def weights_digest(parts: Mapping[str, nn.Module]) -> str:
    """SHA-256 of the tensors of networks, by name."""
    return tensors_digest(nn.ModuleDict(parts).state_dict())


def compare(entry: Mapping[str, Any], now: RunRecord, checkpoint: str) -> list[str]:
    """The settings of a resumed run that differ from those in its checkpoint's ``entry`` and are applied, a line each.

    Raises ``UserError``, a line for each difference that changes what the run means: other rows, another model.
    """
    if "run" not in entry:
        raise UserError(f"cannot resume from {checkpoint}: an earlier fewstep wrote it; start a new run upon its model")
    saved = validated(RunRecord, entry["run"], checkpoint)
    changed = {
        name: (value, now.settings[name])
        for name, value in saved.settings.items()
        if name in now.settings and value != now.settings[name] and name not in IGNORED
    }
    refused = []
    for name, (before, after) in changed.items():
        if name.startswith(DECIDES_ROWS_AND_MODEL) and not name.startswith(MAY_CHANGE):
            advice = "give the same" if name == BATCHES else f"give --{name}={_shown(before)}"
            refused.append(f"{name} is {_shown(after)}, in the checkpoint {_shown(before)}: {advice}")
    prints = {name: (saved.fingerprints.get(name), digest) for name, digest in now.fingerprints.items()}
    names = [name for name, (before, after) in prints.items() if before != after]
    if refused or "data.tokenizer" in names:  # then the blocks differ for that reason
        names = [name for name in names if name != "data.source"]
    for name in names:
        advice = ADVICE.get(name, "give the model that the run began with")
        refused.append(f"{name} names other content than in the checkpoint: {advice}")
    if refused:
        remedy = "or choose another --run_dir to start a new run"
        raise UserError(*(f"cannot resume from {checkpoint}: {line}, {remedy}" for line in refused))
    return [f"{name} {_shown(before)} -> {_shown(after)}" for name, (before, after) in changed.items()]


def _shown(value: Any) -> str:
    text = "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
