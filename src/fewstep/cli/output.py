"""Result files, written whole or not at all and never over others unasked; folders; progress bars."""

import os
import secrets
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, TextIO

from fewstep.errors import UserError

if TYPE_CHECKING:
    from tqdm import tqdm

Write = Callable[[Iterable[str]], None]


@contextmanager
def new_text_file(path: str | Path, *, overwrite: bool) -> Iterator[Write]:
    """Give a function that writes lines to ``path``, through a temporary file that replaces it at the end.

    The temporary file is opened at once, so that a missing or closed folder is an error before any work. When the block
    fails, or writes nothing, nothing is left of it and what stood at ``path`` stays.
    """
    target = Path(path).resolve()
    check_free(target, overwrite=overwrite)
    draft = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
    try:
        draft.touch(exist_ok=False)
    except FileNotFoundError:
        raise UserError(f"cannot write {path}: its folder {target.parent} does not exist; make it first") from None
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from None

    def write(lines: Iterable[str]) -> None:
        try:
            with draft.open("w", encoding="utf-8", newline="\n") as stream:
                stream.writelines(lines)
            check_free(target, overwrite=overwrite)  # another process may have written it meanwhile
            os.replace(draft, target)
        except OSError as error:
            raise UserError(f"cannot write {path}: {error.strerror or error}") from None

    try:
        yield write
    finally:
        draft.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write ``text`` to ``path``, whole, in place of an earlier file."""
    with new_text_file(path, overwrite=True) as write:
        write([text])


def check_free(target: Path, *, overwrite: bool) -> None:
    """Raise ``UserError`` if ``target`` exists and is not a regular file, or ``overwrite`` is off."""
    if not target.exists():
        return
    if not target.is_file():
        raise UserError(f"cannot write {target}: it is no regular file; give the name of a file")
    if not overwrite:
        raise UserError(f"{target} exists already: choose another name, or pass --overwrite to replace it")


def check_writable(folder: Path, *inner: str) -> None:
    """Raise ``UserError`` if results cannot be put into ``folder`` or its ``inner`` folders: before the work."""
    for place in (folder.resolve(), *(folder.resolve() / name for name in inner)):
        nearest = next(parent for parent in (place, *place.parents) if parent.exists())
        if not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK):
            why = "is closed to writing" if nearest.is_dir() else "is no folder"
            raise UserError(f"cannot write into {folder}: {nearest} {why}; choose another folder by --out")


def make_folder(folder: Path) -> None:
    """Create ``folder``. Raises ``UserError`` if that fails, or it is closed to writing."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write into {folder}: {error.strerror}; choose another folder by --out") from None
    check_writable(folder)


class ProgressBar:
    """A progress function, called as (done, total, label), and the bar that it moves.

    The bar appears with the first call, so that an error before it stands alone on its line. If ``stream`` (None:
    stderr) is no terminal, each call writes a line.
    """

    def __init__(self, title: str, unit: str, stream: TextIO | None = None) -> None:
        self.title = title
        self.unit = unit
        self.stream = stream
        self._bar: tqdm[Any] | None = None

    def __enter__(self) -> "ProgressBar":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave the bar as it is."""
        if self._bar is not None:
            self._bar.close()

    def __call__(self, done: int, total: int, label: str) -> None:
        """Move the bar to ``done`` of ``total`` and show ``label`` behind it."""
        from tqdm import tqdm  # not for --help or a mistyped option

        if self._bar is None:
            self._bar = tqdm(total=total, desc=self.title, unit=self.unit, file=self.stream or sys.stderr)
        self._bar.total, self._bar.n = total, done
        self._bar.set_postfix_str(label)
