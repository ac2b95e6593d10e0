"""Result files: written whole or not at all, and never over something unasked."""

import os
import secrets
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from fewstep.errors import UserError

Write = Callable[[Iterable[str]], None]


@contextmanager
def new_text_file(path: str | Path, *, overwrite: bool) -> Iterator[Write]:
    """Give a function that writes lines to ``path``, through a file beside it that takes its place when all is well.

    That file is opened at once, so that a folder that is missing or closed to us is told before any work. When the
    block fails, or writes nothing, nothing is left of it and what stood at ``path`` stays. Raises ``UserError`` in one
    line.
    """
    target = Path(path).expanduser().resolve()
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
            check_free(target, overwrite=overwrite)  # it may have come up meanwhile
            os.replace(draft, target)
        except OSError as error:
            raise UserError(f"cannot write {path}: {error.strerror or error}") from None

    try:
        yield write
    finally:
        draft.unlink(missing_ok=True)


def check_free(target: Path, *, overwrite: bool) -> None:
    """Raise ``UserError`` where ``target`` is no regular file, or is one and ``overwrite`` is off."""
    if not target.exists():
        return
    if not target.is_file():
        raise UserError(f"cannot write {target}: it is no regular file; give the name of a file")
    if not overwrite:
        raise UserError(f"{target} exists already: choose another name, or pass --overwrite to replace it")
