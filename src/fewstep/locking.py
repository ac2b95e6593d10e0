"""One writer per folder, and files and cache folders that are complete or absent."""

import fcntl
import hashlib
import logging
import os
import secrets
import shutil
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from io import FileIO
from pathlib import Path
from typing import cast

from filelock import FileLock

from fewstep.errors import UserError

LOCK_FILE = ".lock"
"""Stays in the folder; the file alone does not mean that it is locked."""
PARTIAL = ".partial"
"""Suffix of a file that is being written."""

_log = logging.getLogger(__name__)


class FolderLock:
    """An exclusive ``flock`` on ``folder/.lock``, which the kernel releases when the process ends, however it ends.

    On network file systems it holds between machines only if the server supports locks; otherwise that is logged and
    nothing is locked. ``option`` is the flag that names the folder, for messages.
    """

    def __init__(self, folder: Path, option: str) -> None:
        self._file = folder / LOCK_FILE
        self._named = f"{option} {folder}"
        self._stream: FileIO | None = None

    def acquire(self) -> "FolderLock":
        """Take the lock, unless this object has it, and make the folder if it is missing; returns itself.

        Raises ``UserError`` where another process has it, or where the folder cannot be written.
        """
        if self._stream is not None:
            return self
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            stream = cast(FileIO, self._file.open("a+b", buffering=0))
        except OSError as error:
            raise UserError(f"{self._named} cannot be written ({error.strerror}): choose another folder") from None
        try:
            fcntl.flock(stream.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            with stream:
                holder = os.pread(stream.fileno(), 200, 0).decode(errors="replace") or "another process"
            remedy = "wait until that has ended, or choose another folder"
            raise UserError(f"{self._named} is in use by {holder}: {remedy}") from None
        except OSError as error:
            _log.warning("%s cannot be locked (%s): start one command at a time in it", self._named, error.strerror)
        with suppress(OSError):  # who holds the lock is for messages only: a full disk does not matter
            stream.truncate(0)
            stream.write(f"process {os.getpid()} on {socket.gethostname()}".encode())
        self._stream = stream
        return self

    def release(self) -> None:
        """Give the lock back; nothing happens where it is not held."""
        if self._stream is not None:
            self._stream.close()
            self._stream = None

    def __enter__(self) -> "FolderLock":
        return self.acquire()

    def __exit__(self, *_: object) -> None:
        self.release()


@contextmanager
def draft_of(file: Path) -> Iterator[Path]:
    """Give an empty file beside ``file`` for its new content; :func:`put_in_place` takes it, else it is removed."""
    draft = file.with_name(f".{file.name}.{secrets.token_hex(4)}{PARTIAL}")
    draft.touch()
    try:
        yield draft
    finally:
        with suppress(OSError):
            draft.unlink(missing_ok=True)


def put_in_place(draft: Path, file: Path) -> None:
    """Rename ``draft`` to ``file`` once its content is on the disk."""
    flush(draft)
    os.replace(draft, file)
    with suppress(OSError):  # not every file system can flush a folder
        flush(file.parent)


def follow_umask(file: Path) -> None:
    """Give ``file`` the mode of a new file; libraries that write through a temporary file leave it to its owner."""
    mask = os.umask(0o077)
    os.umask(mask)
    file.chmod(0o666 & ~mask)


def flush(path: Path) -> None:
    """Wait until a file's content, or a folder's names, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def cached_folder(root: Path, key: str, is_whole: Callable[[Path], bool], build: Callable[[Path], None]) -> Path:
    """The folder ``root/key``, built by ``build(empty temporary folder)`` unless it ``is_whole`` already.

    Processes that ask at once wait for the one that builds, beside the final place; the result is renamed when done.
    Raises ``UserError`` if ``root`` cannot be created or written.
    """
    folder, partial = root / key, root / f".{key}{PARTIAL}"
    if is_whole(folder):
        return folder
    try:
        root.mkdir(parents=True, exist_ok=True)
        lock = FileLock(root / f"{key}.lock").acquire()
    except OSError as error:
        raise UserError(f"cache_dir {root} cannot be written ({error.strerror}): give another cache_dir") from None
    with lock:
        if is_whole(folder):
            return folder
        shutil.rmtree(partial, ignore_errors=True)  # under the lock it belongs to a process that died
        try:
            partial.mkdir()
            build(partial)
            shutil.rmtree(folder, ignore_errors=True)
            os.replace(partial, folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return folder


def file_digest(file: Path) -> str:
    """SHA-256 of a file as hexadecimal digits."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
