"""Folders that are either complete or absent, whatever processes do at once or when they are killed."""

import os
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock

from fewstep.errors import UserError


def cached_folder(root: Path, key: str, is_whole: Callable[[Path], bool], build: Callable[[Path], None]) -> Path:
    """The folder ``root/key``, built by ``build(empty temporary folder)`` unless it ``is_whole`` already.

    Processes that ask at once wait for the one that builds, beside the final place; the result is renamed when done.
    Raises ``UserError`` if ``root`` cannot be created or written.
    """
    folder = root / key
    if is_whole(folder):
        return folder
    try:
        root.mkdir(parents=True, exist_ok=True)
        lock = FileLock(root / f"{key}.lock")
        lock.acquire()
    except OSError as error:
        raise UserError(f"cache_dir {root} cannot be written ({error.strerror}): give another cache_dir") from None
    try:
        if not is_whole(folder):
            _build(root, key, folder, build)
    finally:
        lock.release()
    return folder


def _build(root: Path, key: str, folder: Path, build: Callable[[Path], None]) -> None:
    # Under the lock, every other temporary folder of this key belongs to a process that died.
    for stale in root.glob(f".{key}.*.partial"):
        shutil.rmtree(stale, ignore_errors=True)
    partial = root / f".{key}.{uuid.uuid4().hex[:8]}.partial"
    partial.mkdir()
    try:
        build(partial)
        if folder.exists():
            shutil.rmtree(folder)
        os.replace(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
