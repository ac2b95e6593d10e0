"""Model folders, training checkpoints and models on the hub: written whole or not at all, read strictly.

No code is ever unpickled. What a model *is* (identity, classes of its parts) is :mod:`fewstep.model`'s business.
"""

import json
import logging
import re
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any
from zipfile import BadZipFile, ZipFile, is_zipfile

import torch
from packaging.version import InvalidVersion, Version
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.modules.module import (
    register_module_buffer_registration_hook,
    register_module_parameter_registration_hook,
)

from fewstep.data.tokenizer import load_tokenizer
from fewstep.errors import UserError, first_line
from fewstep.locking import file_digest, flush, follow_umask
from fewstep.registry import validated

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_log = logging.getLogger(__name__)

FORMAT = 2
CHECKPOINT_KEY = "fewstep"
"""Key under which a training checkpoint carries what makes it a whole model."""
CARD = "README.md"
MODEL_FILES = ("config.json", "*.safetensors", "tokenizer/*", CARD)
"""What a model folder holds, as patterns: nothing else is fetched from the hub or replaced on disk."""
FORMAT_1_NAMES = {"head": "commitment"}
"""Parts whose weights format 1 stores under another name."""
EARLIER_PATHS = {
    "TransformerAutoencoder": "fewstep.autoencoders.TransformerAutoencoder",
    **dict.fromkeys(
        ("ImageAutoencoder", "fewstep.autoencoders.ImageAutoencoder"), "fewstep.lab.images.ImageAutoencoder"
    ),
    **{name: f"fewstep.readouts.{name}" for name in ("LinearReadout", "TransformerReadout", "CausalTransformer")},
    **{name: f"fewstep.denoisers.{name}" for name in ("RegressionDenoiser", "CategoricalDenoiser")},
}
"""Where the classes are that earlier versions name by another path, format 1 without any."""


@dataclass(frozen=True)
class PartSpec:
    """How to build a part: its class and the arguments of its constructor."""

    class_path: str
    init_args: dict[str, Any]


@dataclass(frozen=True)
class Manifest:
    """``config.json`` of a model folder; ``sha256`` holds the digest of each weight file by the file's name."""

    identity: dict[str, Any]
    parts: dict[str, PartSpec]
    format: int = FORMAT
    sha256: dict[str, str] = field(default_factory=dict)

    def stored_names(self) -> dict[str, str]:
        """The name under which the weights of each part are stored, by the part's name."""
        return {name: FORMAT_1_NAMES.get(name, name) if self.format == 1 else name for name in self.parts}


@dataclass(frozen=True)
class Stored:
    """Content of a model folder or a checkpoint: weights by part and name; ``tokenizer`` is None for images."""

    manifest: Manifest
    weights: dict[str, dict[str, Tensor]]
    tokenizer: "PreTrainedTokenizerFast | None"


def locate(path: str | Path, revision: str | None = None) -> Path:
    """The folder or ``.ckpt`` file at ``path``, or the local snapshot of the hub's model of that name.

    A local path wins over a hub name. Raises ``UserError`` if neither exists, or the hub is out of reach.
    """
    local = Path(path).expanduser()
    if local.exists():
        return local
    from fewstep.data import hub  # for hub names only

    if "/" not in str(path) or hub.looks_local(str(path)):
        raise UserError(f"{path} does not exist: give a model folder, a .ckpt file or the name of a model on the hub")
    return hub.model_snapshot(str(path), MODEL_FILES, revision=revision)


def read_manifest(path: Path) -> Manifest:
    """The manifest of a model folder or a checkpoint, without a folder's weights. Raises ``UserError`` in one line."""
    if path.is_file():
        return _read_checkpoint(path).manifest
    config = path / "config.json"
    try:
        values = json.loads(config.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} is not a model folder: it has no config.json") from None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{config} cannot be read: {first_line(error)}") from None
    return _as_manifest(values, str(config))


def read_model(path: Path) -> Stored:
    """Read a model folder, or a ``.ckpt`` file whose trained parts come from its (averaged) ``state_dict``.

    Raises ``UserError`` in one line for whatever is missing or broken.
    """
    if path.is_file():
        return _read_checkpoint(path)
    manifest, weights = read_manifest(path), {}
    for name, stored in manifest.stored_names().items():
        file = path / f"{stored}.safetensors"
        weights[name] = read_safetensors(file, manifest.sha256.get(file.name))
    if manifest.identity.get("kind") == "images":
        return Stored(manifest, weights, None)
    if not (path / "tokenizer").is_dir():  # otherwise its name would be looked up on the hub
        raise UserError(f"{path / 'tokenizer'} is missing: the model folder is incomplete")
    return Stored(manifest, weights, load_tokenizer(path / "tokenizer"))


def _read_checkpoint(file: Path) -> Stored:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    checkpoint = load_checkpoint(file)
    if CHECKPOINT_KEY not in checkpoint:
        raise UserError(f"{file} is a checkpoint, but not of fewstep: it has no {CHECKPOINT_KEY!r} entry")
    try:
        entry = checkpoint[CHECKPOINT_KEY]
        frozen, trained = dict(entry["frozen"]), dict(checkpoint["state_dict"])
        manifest = _as_manifest(entry["manifest"], str(file))
        weights = {}
        for name, stored in manifest.stored_names().items():
            own = {k.removeprefix(f"{stored}."): value for k, value in trained.items() if k.startswith(f"{stored}.")}
            weights[name] = frozen.get(stored, own)
        if manifest.identity.get("kind") == "images":
            return Stored(manifest, weights, None)
        backend, special_tokens = Tokenizer.from_str(entry["tokenizer"]), entry["special_tokens"]
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{file} is a checkpoint of another fewstep version ({first_line(error)})") from None
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, clean_up_tokenization_spaces=False, **special_tokens)
    return Stored(manifest, weights, tokenizer)


def _as_manifest(values: Any, source: str) -> Manifest:
    """Check the outline of a manifest. Raises ``UserError`` where it is not one, or of a format unknown here."""
    refusal = UserError(f"{source} does not describe a fewstep model: give a folder written by save_pretrained")
    try:
        if values["format"] not in (1, FORMAT):
            raise UserError(f"{source}: model format {values['format']!r}, this fewstep reads 1 and {FORMAT}")
        manifest = validated(Manifest, _from_format_1(values) if values["format"] == 1 else values, source)
    except (KeyError, TypeError, AttributeError):
        raise refusal from None
    if not all(name.isidentifier() for name in manifest.parts):  # names of files
        raise refusal
    parts = {
        name: replace(spec, class_path=EARLIER_PATHS.get(spec.class_path, spec.class_path))
        for name, spec in manifest.parts.items()
    }
    return replace(manifest, parts=parts)


def _from_format_1(manifest: dict[str, Any]) -> dict[str, Any]:
    """The same manifest as of format 2, but for its number, which says where weights are stored under old names, and
    for fields of the identity that have their defaults.

    Raises ``KeyError``, ``TypeError`` or ``AttributeError`` for what never was a manifest of format 1.
    """
    new_name = {old: new for new, old in FORMAT_1_NAMES.items()}
    identity, parts = dict(manifest["identity"]), {}
    for name, part in manifest["parts"].items():
        init_args = dict(part["config"])
        if part["class"] == "CategoricalDenoiser":
            init_args["path"] = identity["path"]
        parts[new_name.get(name, name)] = {"class_path": part["class"], "init_args": init_args}
    kind = manifest.get("kind", "text")
    if kind == "images":  # whose flow was kept apart, beside shapes that the autoencoder has anyway
        flow = identity.get("flow") or {"objective": identity["objective"]}
        source = {"source": identity["data"], "source_config": identity["data_config"]}
        identity = {**source, "versions": identity["versions"], **flow}
    sha256 = manifest.get("sha256", {})
    return {"format": 1, "identity": {**identity, "kind": kind}, "parts": parts, "sha256": sha256}


def check_target(folder: Path, *, overwrite: bool) -> None:
    """Raise ``UserError`` unless a model folder may be written at ``folder``.

    An empty or missing folder may always be. A model is replaced with ``overwrite`` only, and only if nothing else lies
    beside it in the folder.
    """
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    if not folder.is_dir():
        raise UserError(f"{folder} is a file: choose another place for the model folder")
    if not overwrite:
        raise UserError(f"{folder} exists already: choose another folder, or pass --overwrite to replace it")
    read_manifest(folder)
    ours = {file for pattern in MODEL_FILES for file in folder.glob(pattern.removesuffix("/*"))}
    others = sorted(file.name for file in folder.iterdir() if file not in ours)
    if others:
        raise UserError(f"{folder} holds {', '.join(others)[:200]} beside a model: move that away, then overwrite")


def write_folder(
    folder: Path,
    manifest: Manifest,
    weights: Mapping[str, Mapping[str, Tensor]],
    tokenizer: "PreTrainedTokenizerFast | None",
    card: str,
    *,
    overwrite: bool,
) -> None:
    """Write a model folder beside its place and move it there once it is complete.

    A folder that is replaced is moved aside first and deleted last: a write that fails, or is interrupted, loses
    nothing. Raises ``UserError`` as :func:`check_target` does, and where the disk refuses.
    """
    check_target(folder, overwrite=overwrite)
    folder = folder.resolve()  # a link to a folder stays a link, its target is replaced
    scratch = folder.parent / f".{folder.name}-{secrets.token_hex(4)}"
    old, new = scratch / "old", scratch / "new"
    try:
        new.mkdir(parents=True)
        digests = {}
        for name, tensors in weights.items():
            file = new / f"{name}.safetensors"
            save_file({key: value.detach().cpu().contiguous() for key, value in tensors.items()}, file)
            digests[file.name] = file_digest(file)
        if tokenizer is not None:
            tokenizer.save_pretrained(new / "tokenizer")
        config = json.dumps({"format": manifest.format, **asdict(manifest), "sha256": digests}, indent=2)
        (new / "config.json").write_text(config + "\n", encoding="utf-8")
        (new / CARD).write_text(card, encoding="utf-8")
        for file in filter(Path.is_file, new.rglob("*")):
            follow_umask(file)
            flush(file)
        if folder.exists():
            folder.rename(old)
        new.rename(folder)
    except (OSError, SafetensorError) as error:
        raise UserError(f"cannot write {folder}: {getattr(error, 'strerror', None) or error}") from None
    finally:
        if old.exists() and not folder.exists():
            old.rename(folder)
        shutil.rmtree(scratch, ignore_errors=True)


def recover_folder(folder: Path) -> None:
    """Put back the model that a killed :func:`write_folder` had moved aside, and delete its scratch folders.

    Only for a caller who knows that nobody writes ``folder`` at the moment.
    """
    for scratch in folder.parent.glob(f".{folder.name}-*"):
        if (scratch / "old").is_dir() and not folder.exists():
            (scratch / "old").rename(folder)
        shutil.rmtree(scratch, ignore_errors=True)


def checkpoint_entry(
    manifest: Manifest, frozen: dict[str, dict[str, Tensor]], tokenizer: "PreTrainedTokenizerFast | None"
) -> dict[str, Any]:
    """What a checkpoint carries beside the trained weights: manifest, weights of frozen parts, tokenizer if any."""
    entry: dict[str, Any] = {"manifest": asdict(manifest), "frozen": frozen}
    if tokenizer is not None:
        special_tokens = {"eos_token": str(tokenizer.eos_token), "pad_token": str(tokenizer.pad_token)}
        entry |= {"tokenizer": tokenizer.backend_tokenizer.to_str(), "special_tokens": special_tokens}
    return entry


def load_checkpoint(file: Path) -> dict[str, Any]:
    """The raw dictionary of a ``.ckpt`` file, tensors only.

    Raises ``UserError`` where the file is cut short or corrupt (torch itself does not check the records' checksums),
    and where it asks for code to be run.
    """
    refusal = f"{file} cannot be read as a checkpoint"
    try:
        if is_zipfile(file):
            with ZipFile(file) as archive:
                if damaged := archive.testzip():
                    raise UserError(f"{refusal}: its record {damaged} is damaged on the disk")
        checkpoint = torch.load(file, map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        blocked = re.search(r"GLOBAL (\S+)", str(error))
        reason = f"it asks to run code ({blocked[1]}), which is refused" if blocked else first_line(error)
        raise UserError(f"{refusal}: {reason}") from None
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, BadZipFile) as error:
        raise UserError(f"{refusal}: {first_line(error)}") from None
    if not isinstance(checkpoint, dict):
        raise UserError(f"{file} is not a training checkpoint: it holds a {type(checkpoint).__name__}")
    return checkpoint


def read_safetensors(file: Path, digest: str | None) -> dict[str, Tensor]:
    """The tensors of a weight file, whose SHA-256 must be ``digest`` (None: not recorded, not checked).

    Raises ``UserError`` where the file is missing or damaged.
    """
    try:
        tensors = load_file(file)
        whole = digest is None or digest == file_digest(file)
    except FileNotFoundError:
        if file.exists():  # safetensors reports whatever keeps it from opening a file in this way
            raise UserError(f"{file} is closed to you: ask its owner to let you read it") from None
        raise UserError(f"{file} is missing: the model folder is incomplete") from None
    except (SafetensorError, OSError) as error:
        raise UserError(f"{file} is damaged or cut short ({first_line(error)}): copy or save the model again") from None
    if not whole:
        raise UserError(f"{file} is damaged: its SHA-256 is not the recorded one; copy or save the model again")
    return tensors


@contextmanager
def at_most_numbers(limit: int) -> Iterator[None]:
    """Raise ``ValueError`` as soon as networks built inside would hold more than ``limit`` numbers.

    A file may ask for a network of any size, and Linux kills a process that touches more memory than there is. A
    parameter is registered before it is initialised, that is while its memory is only reserved.
    """
    count = 0

    def add(module: nn.Module, name: str, tensor: Tensor | None) -> None:
        nonlocal count
        count += 0 if tensor is None else tensor.numel()
        if count > limit:
            raise ValueError(f"the network would have more than {limit:,} numbers")

    hooks = (register_module_parameter_registration_hook(add), register_module_buffer_registration_hook(add))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def load_strictly(part: nn.Module, weights: Mapping[str, Tensor], source: str) -> None:
    """Load ``weights`` into ``part``. Raises ``UserError`` for missing, unexpected or differently shaped tensors."""
    problems = state_dict_mismatch(part.state_dict(), weights)
    if problems:
        raise UserError(f"{source}: weights do not fit: {problems}")
    part.load_state_dict(dict(weights), strict=True)


def state_dict_mismatch(expected: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> str:
    """How many tensors are missing, unexpected or of another shape, with the first names of each; empty if none."""
    listed = {
        "missing": [name for name in expected if name not in given],
        "unexpected": [name for name in given if name not in expected],
        "of another shape": [
            f"{name} {tuple(given[name].shape)} for {tuple(expected[name].shape)}"
            for name in expected
            if name in given and given[name].shape != expected[name].shape
        ],
    }
    first = {what: ", ".join(names[:2] + ["..."] * (len(names) > 2)) for what, names in listed.items()}
    return "; ".join(f"{len(names)} {what} ({first[what]})" for what, names in listed.items() if names)


def warn_of_newer(saved: Mapping[str, str], source: str) -> None:
    """Log one line where a model was saved by a newer fewstep than this one."""
    ours, theirs = version("fewstep"), saved.get("fewstep", "")
    with suppress(InvalidVersion):
        if Version(theirs) > Version(ours):
            _log.warning("%s was saved by fewstep %s, this is %s: update where it behaves oddly", source, theirs, ours)
