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
from pathlib import Path

from filelock import FileLock

from fewstep.errors import UserError

LOCK_FILE = ".lock"
"""Exists while the lock is held, and after a holder was killed; the file alone does not mean that it is locked."""
PARTIAL = ".partial"
"""Suffix of a file that is being written."""

_log = logging.getLogger(__name__)


class FolderLock:
    """An exclusive ``flock`` on ``folder/.lock``, which the kernel releases when the process ends, however it ends.

    On network file systems it holds between machines only if the server supports locks; otherwise that is logged and
    nothing is locked. ``option`` is the flag that names the folder, for messages.
    """

    def __init__(self, folder: Path, option: str) -> None:
        self.folder = folder
        self._named = f"{option} {folder}"
        self._descriptor: int | None = None

    def acquire(self) -> "FolderLock":
        """Take the lock, unless this object has it, and make the folder if it is missing; returns itself.

        Raises ``UserError`` where another process has it, or where the folder cannot be written.
        """
        if self._descriptor is not None:
            return self
        file = self.folder / LOCK_FILE
        descriptor = self._open(file)
        while not _is_named(descriptor, file):  # its holder removed it between our opening and our locking
            os.close(descriptor)
            descriptor = self._open(file)
        with suppress(OSError):  # who holds the lock is for messages only: a full disk does not matter
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)
        self._descriptor = descriptor
        return self

    def release(self) -> None:
        """Remove the file and give the lock back; nothing happens where it is not held."""
        if self._descriptor is not None:
            with suppress(OSError):
                (self.folder / LOCK_FILE).unlink(missing_ok=True)
            os.close(self._descriptor)
            self._descriptor = None

    def __enter__(self) -> "FolderLock":
        return self.acquire()

    def __exit__(self, *_: object) -> None:
        self.release()

    def _open(self, file: Path) -> int:
        """Descriptor of the locked file."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise UserError(f"{self._named} cannot be written ({error.strerror}): choose another folder") from None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(descriptor, 200, 0).decode(errors="replace") or "another process"
            os.close(descriptor)
            raise UserError(
                f"{self._named} is in use by {holder}: wait until that has ended, or choose another folder"
            ) from None
        except OSError as error:
            _log.warning("%s cannot be locked (%s): start one command at a time in it", self._named, error.strerror)
        return descriptor


def _is_named(descriptor: int, file: Path) -> bool:
    """Whether ``file`` is still the name of the open file."""
    try:
        return os.path.samestat(os.fstat(descriptor), file.stat())
    except FileNotFoundError:
        return False


@contextmanager
def draft_of(file: Path) -> Iterator[Path]:
    """Give an empty file beside ``file`` for its new content; :func:`put_in_place` takes it, else it is removed."""
    draft = file.with_name(f".{file.name}.{secrets.token_hex(4)}{PARTIAL}")
    draft.touch(exist_ok=False)
    try:
        yield draft
    finally:
        with suppress(OSError):
            draft.unlink(missing_ok=True)


def put_in_place(draft: Path, file: Path) -> None:
    """Rename ``draft`` to ``file`` once its content is on the disk; its mode is that of any new file."""
    follow_umask(draft)
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


def file_digest(file: Path) -> str:
    """SHA-256 of a file as hexadecimal digits."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
