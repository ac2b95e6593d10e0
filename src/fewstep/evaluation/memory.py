"""Whether a model fits the memory, told before it is loaded: sizes stand in the header of a safetensors file."""

import json
import math
import os
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from fewstep.errors import UserError, first_line

GIB = 2**30
_LENGTH = struct.Struct("<Q")
_LARGEST_HEADER = 100_000_000
"""Bytes; the format allows no more."""


def read_header(file: Path) -> dict[str, Any]:
    """Name to ``dtype`` and ``shape`` of every tensor of a safetensors file, without reading the tensors.

    Raises ``UserError`` where the file is no such file or is cut off.
    """
    try:
        with file.open("rb") as stream:
            (length,) = _LENGTH.unpack(stream.read(_LENGTH.size))
            if length > _LARGEST_HEADER:
                raise ValueError(f"a header of {length} bytes")
            header = json.loads(stream.read(length))
        return {name: entry for name, entry in header.items() if name != "__metadata__"}
    except (OSError, struct.error, ValueError, AttributeError, RecursionError) as error:
        raise UserError(
            f"{file} cannot be read as safetensors ({first_line(error)}): fetch or write it again"
        ) from None


def bytes_needed(folder: Path, dtype: torch.dtype) -> int:
    """Bytes of all weights in the safetensors files of ``folder`` once each number has ``dtype``.

    Files that an index names count, else all. Raises ``UserError`` where a file is damaged.
    """
    numbers = 0
    for file in weight_files(folder):
        for name, entry in read_header(file).items():
            shape = entry.get("shape") if isinstance(entry, Mapping) else None
            if not isinstance(shape, list) or not all(type(size) is int and size >= 0 for size in shape):
                raise UserError(f"{file} cannot be read as safetensors (no shape of {name}): fetch or write it again")
            numbers += math.prod(shape)
    return numbers * dtype.itemsize


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a folder that hold its model, in order of their names."""
    index = sorted(folder.glob("*.safetensors.index.json"))
    if not index:
        return sorted(folder.glob("*.safetensors"))
    try:
        names = sorted(set(json.loads(index[0].read_text(encoding="utf-8"))["weight_map"].values()))
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise UserError(f"{index[0]} cannot be read as an index of weights ({error}): fetch it again") from None
    files = [folder / str(name) for name in names]
    if missing := [file.name for file in files if not file.is_file()]:
        raise UserError(f"{folder} lacks {len(missing)} of its weight files, first {missing[0]}: fetch them too")
    return files


def available_bytes(device: str) -> int:
    """Free memory in bytes of the GPU for a ``device`` "cuda...", of the machine otherwise."""
    if device.startswith("cuda"):
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:  # another system than Linux
        pass
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def check_fits(folder: Path, dtype: torch.dtype, device: str) -> None:
    """Raise ``UserError`` where the weights in ``folder`` take more memory than ``device`` has free."""
    needed, free = bytes_needed(folder, dtype), available_bytes(device)
    if needed > free:
        raise UserError(
            f"{folder} needs {needed / GIB:.1f} GiB for its weights in {str(dtype).removeprefix('torch.')}, and "
            f"{device} has {free / GIB:.1f} GiB free: take a smaller --dtype, a smaller model or another device"
        )
