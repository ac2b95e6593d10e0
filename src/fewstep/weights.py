"""Tensors from disk into networks: read whole, without running code, and put in place strictly."""

import hashlib
import os
import re
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any
from zipfile import BadZipFile, ZipFile, is_zipfile

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from fewstep.errors import UserError, first_line


def load_checkpoint(file: Path) -> dict[str, Any]:
    """The raw dictionary of a ``.ckpt`` file, tensors only (no code is run).

    Raises ``UserError`` where the file is cut short, where its bytes are not those that were written (torch itself does
    not look at the checksums), or where it asks for code to be run.
    """
    try:
        damaged = _damaged_record(file)
        if damaged is not None:
            raise UserError(f"{file} cannot be read as a checkpoint: its record {damaged} is damaged on the disk")
        checkpoint = torch.load(file, map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        blocked = re.search(r"GLOBAL (\S+)", str(error))
        reason = f"it asks to run code ({blocked[1]}), which is refused" if blocked else first_line(error)
        raise UserError(f"{file} cannot be read as a checkpoint: {reason}") from None
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, BadZipFile) as error:
        raise UserError(f"{file} cannot be read as a checkpoint: {first_line(error)}") from None
    if not isinstance(checkpoint, dict):
        raise UserError(f"{file} is not a training checkpoint: it holds a {type(checkpoint).__name__}")
    return checkpoint


def _damaged_record(file: Path) -> str | None:
    """Name of the first record of a checkpoint whose checksum is wrong; None where all are right."""
    if not is_zipfile(file):
        return None
    with ZipFile(file) as archive:
        return archive.testzip()


def file_digest(file: Path) -> str:
    """SHA-256 of a file, read block by block, as hexadecimal digits."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def read_safetensors(file: Path, digest: str | None) -> dict[str, Tensor]:
    """The tensors of a safetensors file of a model folder, whose bytes must have ``digest`` where one is known.

    Raises ``UserError`` where the file is missing or damaged.
    """
    try:
        tensors = load_file(file)
        whole = digest is None or digest == file_digest(file)
    except FileNotFoundError:
        raise UserError(f"{file} is missing: the model folder is incomplete") from None
    except (SafetensorError, OSError) as error:
        raise UserError(f"{file} is damaged or cut short ({first_line(error)}): copy or save the model again") from None
    if not whole:
        raise UserError(
            f"{file} is damaged on the disk: its bytes are not those that were written; copy or save the model again"
        )
    return tensors


def load_strictly(part: nn.Module, weights: dict[str, Tensor], source: str) -> None:
    """Put ``weights`` into ``part``. Raises ``UserError`` where one is missing, too many or of another shape."""
    problems = misfit(part.state_dict(), weights)
    if problems:
        raise UserError(f"{source}: weights do not fit: {problems}")
    part.load_state_dict(weights, strict=True)


def misfit(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> str:
    """What keeps ``found`` from being loaded where ``expected`` is: how many tensors are missing, unexpected or of
    another shape, with the first names of each. Empty where they fit."""
    missing = [name for name in expected if name not in found]
    unexpected = [name for name in found if name not in expected]
    reshaped = [
        f"{name} {tuple(found[name].shape)} for {tuple(tensor.shape)}"
        for name, tensor in expected.items()
        if name in found and found[name].shape != tensor.shape
    ]
    listed = {"missing": missing, "unexpected": unexpected, "of another shape": reshaped}
    return "; ".join(f"{len(names)} {what} ({_first_names(names)})" for what, names in listed.items() if names)


def _first_names(names: list[str], shown: int = 2) -> str:
    return ", ".join(names[:shown]) + (", ..." if len(names) > shown else "")


def flush(path: Path) -> None:
    """Wait until what was written to a file, or a folder's names, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
