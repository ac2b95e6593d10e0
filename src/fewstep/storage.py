"""Model folders and training checkpoints on disk: written whole or not at all, read strictly."""

import json
import logging
import re
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from packaging.version import InvalidVersion, Version
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from fewstep.data import load_tokenizer
from fewstep.errors import UserError, first_line
from fewstep.typed import check_types
from fewstep.weights import file_digest, flush, load_checkpoint, read_safetensors
from fewstep.weights import load_strictly as load_strictly  # what is built of a stored model is filled by it
from fewstep.weights import misfit as misfit

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_log = logging.getLogger(__name__)

CHECKPOINT_KEY = "fewstep"
"""Key under which a training checkpoint carries what the weights alone do not say."""

DIGESTS = "sha256"
"""Key of ``config.json`` for the digest of each weight file, by its name; models saved before it was kept have none."""
_DIGEST = re.compile("[0-9a-f]{64}")

Kind = Literal["text", "images"]
"""What a model is a model of; manifests without the entry ``kind`` are of text."""


@dataclass(frozen=True)
class Stored:
    """What a model folder or a checkpoint holds: manifest, weights by part and name, tokenizer (None: of images)."""

    manifest: dict[str, Any]
    weights: dict[str, dict[str, Tensor]]
    tokenizer: "PreTrainedTokenizerFast | None"


PART_WAS = {"commitment": "head"}
"""Parts that models of format 1 name differently."""


def _renamed(stored: Stored) -> Stored:
    """What was stored under old names, under today's."""
    manifest, weights = dict(stored.manifest), stored.weights
    manifest["parts"] = {PART_WAS.get(name, name): part for name, part in manifest["parts"].items()}
    return Stored(manifest, {PART_WAS.get(name, name): part for name, part in weights.items()}, stored.tokenizer)


def check_target(folder: Path, *, overwrite: bool) -> None:
    """Raise ``UserError`` unless a model folder may be written at ``folder``.

    An empty or missing folder always may be. One that holds something is replaced with ``overwrite`` only, and only if
    it holds a model and nothing else: nothing of others is deleted.
    """
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    if not folder.is_dir():
        raise UserError(f"{folder} is a file: choose another place for the model folder")
    if not overwrite:
        raise UserError(f"{folder} exists already: choose another folder, or pass --overwrite to replace it")
    _read_manifest(folder)
    names = sorted(item.name for item in folder.iterdir())
    strangers = [
        name for name in names if name not in ("config.json", "tokenizer") and not name.endswith(".safetensors")
    ]
    if strangers:
        raise UserError(f"{folder} holds {', '.join(strangers)[:200]} beside a model: move that away, then overwrite")


def write_folder(
    folder: Path,
    manifest: dict[str, Any],
    weights: dict[str, dict[str, Tensor]],
    tokenizer: "PreTrainedTokenizerFast | None",
    *,
    overwrite: bool,
) -> None:
    """Write a model folder beside its place and move it in when it is complete.

    ``config.json`` holds the ``manifest`` and the digests of the weight files (:data:`DIGESTS`). What stood there
    before is moved aside and deleted only when the new one is in place: a write that fails, or is interrupted, loses
    nothing. Raises ``UserError`` as :func:`check_target` does, and where the disk refuses.
    """
    check_target(folder, overwrite=overwrite)
    folder = folder.resolve()  # a link to a folder stays a link, its target is what is replaced
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    except OSError as error:
        raise UserError(f"cannot write {folder}: {error.strerror or error}") from None
    old, new = scratch / "old", scratch / "new"
    try:
        new.mkdir()  # not mkdtemp's own folder, which only its owner may read
        digests = {}
        for name, tensors in weights.items():
            plain = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
            file = new / f"{name}.safetensors"
            save_file(plain, file)
            digests[file.name] = file_digest(file)
        if tokenizer is not None:
            tokenizer.save_pretrained(new / "tokenizer")
        config = json.dumps({**manifest, DIGESTS: digests}, indent=2)
        (new / "config.json").write_text(config + "\n", encoding="utf-8")
        for file in filter(Path.is_file, new.rglob("*")):
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
    """Put back the model that a killed :func:`write_folder` had moved aside, and remove what else it left.

    For a caller who knows that nobody writes ``folder`` at the moment.
    """
    for scratch in folder.parent.glob(f".{folder.name}-*"):
        if (scratch / "old").is_dir() and not folder.exists():
            (scratch / "old").rename(folder)
        shutil.rmtree(scratch, ignore_errors=True)


def read_model(path: Path, kind: Kind) -> Stored:
    """Read a model folder, or a ``.ckpt`` file, that must be of ``kind``. Raises ``UserError`` in one line."""
    require_kind(path, kind)
    return _renamed(read_checkpoint(path) if path.is_file() else read_folder(path))


def kind_of(path: str | Path) -> Kind:
    """Whether a model folder or a ``.ckpt`` file holds a model of text or of images.

    Raises ``UserError`` where it holds none; a folder's weights are not looked at.
    """
    path = Path(path).expanduser()
    if not path.exists():
        raise UserError(f"{path} does not exist: give a model folder or a .ckpt file")
    manifest = _checkpoint_entry(path)["manifest"] if path.is_file() else _read_manifest(path)
    kind = manifest.get("kind", "text")
    if kind not in get_args(Kind):
        raise UserError(f"{path} holds a model of {kind!r}: this fewstep knows {' and '.join(get_args(Kind))}")
    return kind


def require_kind(path: str | Path, kind: Kind) -> None:
    """Raise ``UserError`` unless :func:`kind_of` ``path`` is ``kind``."""
    if (found := kind_of(path)) != kind:
        raise UserError(f"{path} holds a model of {found}, expected one of {kind}: give a model trained on {kind}")


def read_folder(folder: Path) -> Stored:
    """Read what :func:`write_folder` wrote. Raises ``UserError`` in one line for whatever is missing or broken."""
    if not folder.exists():
        raise UserError(f"{folder} does not exist: give a model folder or a .ckpt file")
    manifest = _read_manifest(folder)
    digests = _digests(manifest.pop(DIGESTS, {}), folder)  # of these files: a manifest that goes on has no use for them
    files = {name: folder / f"{name}.safetensors" for name in manifest["parts"]}
    weights = {name: read_safetensors(file, digests.get(file.name)) for name, file in files.items()}
    if manifest.get("kind") == "images":
        return Stored(manifest, weights, None)
    if not (folder / "tokenizer").is_dir():  # else its name would be looked up on the hub
        raise UserError(f"{folder / 'tokenizer'} is missing: the model folder is incomplete")
    return Stored(manifest, weights, load_tokenizer(folder / "tokenizer"))


def _read_manifest(folder: Path) -> dict[str, Any]:
    config = folder / "config.json"
    try:
        manifest = json.loads(config.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{folder} is not a model folder: it has no config.json") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{config} cannot be read: {first_line(error)}") from None
    check_manifest(manifest, str(config))
    return manifest


def check_identity(identity: Any, source: str) -> None:
    """Raise ``UserError`` where a field of an identity is of another type than annotated, or its time grid is none."""
    try:
        check_types(identity)
        if hasattr(identity, "default_grid"):
            identity.default_grid()
    except (TypeError, ValueError, OverflowError) as error:
        raise UserError(f"{source}: {error}: save the model again") from None


def check_manifest(manifest: Any, source: str) -> None:
    """Raise ``UserError`` unless a manifest has the outline of one: format, identity, parts with class and config."""
    whole = isinstance(manifest, dict) and isinstance(manifest.get("identity"), dict)
    parts = manifest.get("parts") if whole else None
    if not isinstance(parts, dict) or not all(
        name.isidentifier() and isinstance(part, dict) and isinstance(part.get("config"), dict) and "class" in part
        for name, part in parts.items()
    ):
        raise UserError(f"{source} does not describe a fewstep model: give a folder written by save_pretrained")


def _digests(found: Any, folder: Path) -> dict[str, str]:
    """The digests of a folder's files by their names. Raises ``UserError`` where ``found`` is something else."""
    if isinstance(found, dict) and all(isinstance(one, str) and _DIGEST.fullmatch(one) for one in found.values()):
        return found
    raise UserError(
        f"{folder / 'config.json'}: {DIGESTS} is {str(found)[:80]}, expected 64 hexadecimal digits for each weight "
        "file: copy or save the model again"
    )


def checkpoint_entry(
    manifest: dict[str, Any], frozen: dict[str, dict[str, Tensor]], tokenizer: "PreTrainedTokenizerFast | None"
) -> dict[str, Any]:
    """What a checkpoint carries beside the trained weights: manifest, weights of frozen parts, tokenizer if any."""
    if tokenizer is None:
        return {"manifest": manifest, "frozen": frozen}
    return {
        "manifest": manifest,
        "frozen": frozen,
        "tokenizer": tokenizer.backend_tokenizer.to_str(),
        "special_tokens": {"eos_token": str(tokenizer.eos_token), "pad_token": str(tokenizer.pad_token)},
    }


def read_checkpoint(file: Path) -> Stored:
    """Read a training checkpoint; trained parts come from its ``state_dict`` (the averaged weights where EMA ran)."""
    entry = _checkpoint_entry(file)
    manifest, weights, trained = entry["manifest"], dict(entry["frozen"]), entry["trained"]
    for name in manifest["parts"]:
        if name not in weights:
            prefix = f"{name}."
            weights[name] = {key[len(prefix) :]: value for key, value in trained.items() if key.startswith(prefix)}
    return Stored(manifest, weights, None if manifest.get("kind") == "images" else _tokenizer_of(entry, file))


def _checkpoint_entry(file: Path) -> dict[str, Any]:
    """What :func:`checkpoint_entry` put into a checkpoint, and the trained weights beside it as ``trained``."""
    checkpoint = load_checkpoint(file)
    if CHECKPOINT_KEY not in checkpoint:
        raise UserError(f"{file} is a checkpoint, but not of fewstep: it has no {CHECKPOINT_KEY!r} entry")
    entry = checkpoint[CHECKPOINT_KEY]
    try:
        found = {**entry, "manifest": entry["manifest"], "frozen": entry["frozen"], "trained": checkpoint["state_dict"]}
    except (KeyError, TypeError) as error:
        raise _another_version(file, error) from None
    check_manifest(found["manifest"], str(file))
    return found


def _tokenizer_of(entry: dict[str, Any], file: Path) -> "PreTrainedTokenizerFast":
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    try:
        backend, special_tokens = Tokenizer.from_str(entry["tokenizer"]), entry["special_tokens"]
    except (KeyError, TypeError) as error:
        raise _another_version(file, error) from None
    return PreTrainedTokenizerFast(tokenizer_object=backend, clean_up_tokenization_spaces=False, **special_tokens)


def _another_version(file: Path, error: Exception) -> UserError:
    return UserError(f"{file} is a checkpoint of another fewstep version ({first_line(error)})")


def versions(*packages: str) -> dict[str, str]:
    """Versions of fewstep, torch and further ``packages`` that a saved model depends on."""
    return {name: version(name) for name in ("fewstep", "torch", *packages)}


def warn_of_newer(saved: Mapping[str, str], source: str) -> None:
    """Log one line where a model was saved by a newer fewstep than this one: what that added is unknown here."""
    ours, theirs = version("fewstep"), str(saved.get("fewstep", ""))
    try:
        newer = Version(theirs) > Version(ours)
    except InvalidVersion:
        return
    if newer:
        _log.warning("%s was saved by fewstep %s, this is %s: update where it behaves oddly", source, theirs, ours)
