"""Folders that are either complete or absent, whatever processes do at once or when they are killed."""

import os
import shutil
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
    partial = root / f".{key}.partial"
    try:
        if not is_whole(folder):
            shutil.rmtree(partial, ignore_errors=True)  # under the lock it belongs to a process that died
            partial.mkdir()
            build(partial)
            shutil.rmtree(folder, ignore_errors=True)
            os.replace(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        lock.release()
    return folder
