"""The edge to the user: exceptions become one line and an exit code, and the shipped YAML files are found."""

import errno
import os
import select
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

import fewstep
from fewstep.errors import UserError
from fewstep.provenance import without_secrets

EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130  # 128 + SIGINT, as a shell reports it
EXIT_BROKEN_PIPE = 141  # 128 + SIGPIPE

DEBUG = "--debug"
"""Given anywhere on the command line: a refusal shows its traceback before its line."""

LONGEST_LINE = 600
"""Characters: of a longer message the middle is left out, the value at its beginning and the advice at its end stay."""

MACHINE_ERRORS = (
    (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, "free some space, or write to another disk"),
    (errno.EROFS, errno.EACCES, errno.EPERM, "choose a folder that is open to you"),
    (errno.ENAMETOOLONG, errno.ELOOP, errno.EISDIR, "give another name"),
    (errno.EIO, errno.ESTALE, errno.ENODEV, "the disk or its connection fails: choose another one"),
    (errno.EMFILE, errno.ENFILE, errno.ENOMEM, "the machine is at its limit: give it less at a time"),
)
"""What a machine refuses, whoever asks, and what to do about it: three numbers of ``errno`` and the advice."""


NO_HOME = "Could not determine home directory."
"""What ``Path.expanduser`` says of "~name" for a user who does not exist."""


def run(command: Callable[[list[str]], int], argv: list[str]) -> int:
    """Call ``command(argv)`` and return its exit code.

    A UserError is told in one line on stderr (2), and so is a disk or a memory that is full or closed; ``--debug``,
    which the command does not see, shows the traceback too. An interrupt is one line (130), and a reader of our output
    that went away ends the command quietly (141). Every other exception is a defect of ours and keeps its traceback.
    """
    debug = DEBUG in argv
    try:
        code = command([argument for argument in argv if argument != DEBUG])
        sys.stdout.flush()
        return code
    except UserError as error:
        return _refused(str(error), debug)
    except KeyboardInterrupt:
        print("fewstep: interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        if not _reader_is_gone(sys.stdout.fileno()):
            raise  # some other pipe broke, a data worker's for example: that is news
        # What is still buffered is flushed at exit; without this the interpreter would complain there.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_BROKEN_PIPE
    except (OSError, MemoryError, RuntimeError, ValueError) as error:
        if (told := _machine_says(error, argv)) is None:
            raise
        return _refused(told, debug)


def first_speaks(command: Callable[[], int]) -> int:
    """Call ``command``; of several processes (the environment's ``RANK``) the first alone raises its ``UserError``, the
    others return its exit code in silence."""
    speaks = os.environ.get("RANK", "0") == "0"
    try:
        return command()
    except UserError:
        if speaks:
            raise
        return EXIT_USER_ERROR


def one_line(text: str) -> str:
    """``text`` as a terminal can show it in one line: white space as single blanks, other characters that do not print
    escaped, secrets of the environment blanked, and the middle of a very long one left out."""
    plain = " ".join(without_secrets(text).split())
    shown = "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in plain)
    if len(shown) <= LONGEST_LINE:
        return shown
    half = LONGEST_LINE // 2 - 10
    return f"{shown[:half]} [...] {shown[-half:]}"


def _refused(message: str, debug: bool) -> int:
    if debug:
        print(without_secrets(traceback.format_exc()), end="", file=sys.stderr)
    print("fewstep: error:", one_line(message), file=sys.stderr)
    return EXIT_USER_ERROR


def _machine_says(error: Exception, argv: list[str]) -> str | None:
    """What to tell of an error that the machine is the reason of, while it ran ``argv``; None for any other."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return f"out of memory ({str(error).partition('. ')[0] or 'no more to be had'}): give a smaller --batch_size"
    if isinstance(error, ValueError) and "embedded null byte" in str(error):
        return "the name of a file holds a NUL character (got '\\0'): give it without"
    if isinstance(error, RuntimeError) and str(error) == NO_HOME:
        given = next((one for one in argv if one.startswith("~") or "=~" in one), "~")
        return f"{given}: this machine knows no home folder for what follows the ~: write the whole path"
    for *numbers, advice in MACHINE_ERRORS:
        if isinstance(error, OSError) and error.errno in numbers:
            return f"{error.filename or 'a file'}: {error.strerror}: {advice}"
    return None


def configs_folder() -> Path:
    """The folder of the shipped YAML files: inside an installed package, else at the root of the checkout.

    Raises UserError when there is neither.
    """
    package = Path(fewstep.__file__).parent
    candidates = (package / "configs", package.parents[1] / "configs")
    for folder in candidates:
        if folder.is_dir():
            return folder
    places = " or ".join(str(folder) for folder in candidates)
    raise UserError(f"no configs folder at {places}; expected fewstep's YAML files there; install fewstep again")


def _reader_is_gone(descriptor: int) -> bool:
    poll = select.poll()
    poll.register(descriptor, select.POLLOUT)
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))
