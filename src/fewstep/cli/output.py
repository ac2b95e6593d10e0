"""Result files, written whole or not at all and never over others unasked; folders; progress bars."""

import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from fewstep.errors import UserError
from fewstep.locking import draft_of, put_in_place

Write = Callable[[Iterable[str]], None]


@contextmanager
def new_text_file(path: str | Path, *, overwrite: bool) -> Iterator[Write]:
    """Give a function that writes lines to ``path``, through a temporary file that replaces it at the end.

    The temporary file is opened at once, so that a missing or closed folder is an error before any work. When the block
    fails, or writes nothing, nothing is left of it and what stood at ``path`` stays.
    """
    target = Path(path).resolve()
    check_free(target, overwrite=overwrite)
    if not target.parent.is_dir():
        raise UserError(f"cannot write {path}: its folder {target.parent} does not exist; make it first")
    with draft_of(target) as draft:

        def write(lines: Iterable[str]) -> None:
            with draft.open("w", encoding="utf-8", newline="\n") as stream:
                stream.writelines(lines)
            check_free(target, overwrite=overwrite)  # another process may have written it meanwhile
            put_in_place(draft, target)

        yield write


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


def check_writable(folder: Path) -> None:
    """Raise ``UserError`` if results cannot be put into ``folder``: before the work."""
    place = folder.resolve()
    nearest = next(parent for parent in (place, *place.parents) if parent.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK):
        why = "is closed to writing" if nearest.is_dir() else "is no folder"
        raise UserError(f"cannot write into {folder}: {nearest} {why}; choose another folder")


def make_folder(folder: Path) -> None:
    """Create ``folder``. Raises ``UserError`` where it is no folder or closed to writing."""
    check_writable(folder)
    folder.mkdir(parents=True, exist_ok=True)


@contextmanager
def progress_bar(title: str, unit: str) -> Iterator[Callable[[int, int, str], None]]:
    """Give a progress function, called as (done, total, label), that moves a bar and shows ``label`` behind it.

    The bar appears on stderr with the first call, so that an error before it stands alone on its line.
    """
    with ExitStack() as closed:
        bars: list[Any] = []

        def move(done: int, total: int, label: str) -> None:
            from tqdm import tqdm  # not for --help or a mistyped option

            if not bars:
                bars.append(closed.enter_context(tqdm(desc=title, unit=unit, file=sys.stderr)))
            bars[0].total, bars[0].n = total, done
            bars[0].set_postfix_str(label)

        yield move
