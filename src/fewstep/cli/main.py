"""The ``fewstep`` command: runs one command by its name and turns errors into exit codes.

What a user can correct is one line on stderr; our own defects show a traceback.
"""

import errno
import io
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, redirect_stdout
from importlib import import_module
from typing import Any

from fewstep import __version__
from fewstep.errors import UserError
from fewstep.provenance import without_secrets

EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130  # 128 + SIGINT, as a shell reports it
EXIT_BROKEN_PIPE = 141  # 128 + SIGPIPE

DEBUG = "--debug"
"""Anywhere on the command line: show the traceback of a refusal before its line."""

LONGEST_LINE = 600
"""Characters of a message; the middle of a longer one is left out, so that value and advice stay."""

MACHINE_ERRORS = (
    (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, "free some space, or write to another disk"),
    (errno.EROFS, errno.EACCES, errno.EPERM, "choose a folder or file that is open to you"),
    (errno.ENAMETOOLONG, errno.ELOOP, errno.EISDIR, "give another name"),
    (errno.EIO, errno.ESTALE, errno.ENODEV, "the disk or its connection fails: choose another one"),
    (errno.EMFILE, errno.ENFILE, errno.ENOMEM, "the machine is at its limit: give it less at a time"),
)
"""Errors of the machine, whatever the command does: numbers of ``errno`` and the advice."""

# name -> (help in one line, module with main(argv: list[str]) -> int)
COMMANDS: dict[str, tuple[str, str]] = {
    "quickstart": ("train, sample and score on the built-in text, in minutes", "fewstep.cli.quickstart"),
    "train": ("train one stage from a YAML file of settings", "fewstep.training.command"),
    "configs": ("list the shipped settings, or copy them into a folder", "fewstep.cli.configs"),
    "sample": ("write text with a saved model", "fewstep.cli.sample"),
    "evaluate": ("score samples over steps, re-injection and readouts, beside real text", "fewstep.cli.evaluate"),
    "compare": ("train objectives on one model's latents and compare their samples", "fewstep.lab.compare.command"),
    "scorer": ("make a local language model that scores text, from an installed package", "fewstep.cli.scorer"),
    "diagnose": ("measure how sharp a model's readout is and where tokens are decided", "fewstep.cli.diagnose"),
    "report": ("write one page on runs: verdict, curves, texts and a viewer", "fewstep.lab.report.command"),
    "theory": ("study where few-step sampling fails in closed form, without training", "fewstep.lab.theory.command"),
    "convert": ("make a saved model of training checkpoints", "fewstep.cli.convert"),
}


def usage() -> str:
    """The help text: every command with its line."""
    width = max(map(len, COMMANDS))
    lines = "\n".join(f"  {name:<{width}}  {help_line}" for name, (help_line, _) in COMMANDS.items())
    return f"""usage: fewstep COMMAND [OPTIONS]

{lines}

fewstep COMMAND --help shows the options of a command; fewstep --version shows the version;
--debug with any command shows where in the code an error came from."""


def dispatch(argv: list[str]) -> int:
    """Run the command named by ``argv[0]`` with the rest of ``argv``; returns its exit code."""
    name = argv[0] if argv else ""
    if name in ("-h", "--help"):
        print(usage())
        return 0
    if name == "--version":
        print(f"fewstep {__version__}")
        return 0
    if name not in COMMANDS:
        given = f"unknown command {name!r}" if name else "no command given"
        raise UserError(f"{given}; expected one of {', '.join(COMMANDS)}; see fewstep --help")
    # Read by OpenMP when torch is loaded: waiting threads that spin slow a busy machine to a crawl.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    return import_module(COMMANDS[name][1]).main(argv[1:])


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of the installed command; ``argv`` defaults to the process's own. Returns the exit code."""
    return errors_to_exit_code(dispatch, list(sys.argv[1:] if argv is None else argv))


class LenientStream:
    """A text stream whose failures (closed, disk full, reader gone) are kept in ``error`` instead of raised.

    What a command prints comments on its work; losing the terminal must not cost the work.
    """

    def __init__(self, stream: Any) -> None:
        self.stream = io.StringIO() if stream is None or stream.closed else stream  # None: closed before Python began
        self.error: OSError | None = None
        if hasattr(self.stream, "reconfigure"):
            self.stream.reconfigure(errors="replace")  # an ASCII terminal shows "?" for what it cannot encode

    def write(self, text: str) -> int:
        """Write ``text``, or drop it after a failure."""
        self._try(self.stream.write, text)
        return len(text)

    def flush(self) -> None:
        """Flush, unless the stream has failed."""
        self._try(self.stream.flush)

    def _try(self, action: Callable[..., object], *arguments: str) -> None:
        if self.error is None:
            try:
                action(*arguments)
            except OSError as error:
                self.error = error

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def check_stdout() -> None:
    """Raise the ``OSError`` that stdout failed with, in a command whose work is what it prints."""
    if isinstance(sys.stdout, LenientStream) and sys.stdout.error is not None:
        raise sys.stdout.error


def errors_to_exit_code(command: Callable[[list[str]], int], argv: list[str]) -> int:
    """Call ``command(argv)``, without ``--debug``, and return its exit code.

    A ``UserError`` and an error of the machine (disk, memory) are one line on stderr and 2, an interrupt 130, a reader
    of stdout that left 141. Every other exception is a defect and passes.
    """
    debug = DEBUG in argv
    stdout, stderr = LenientStream(sys.stdout), LenientStream(sys.stderr)
    with redirect_stdout(stdout), redirect_stderr(stderr):
        try:
            code = command([argument for argument in argv if argument != DEBUG])
            sys.stdout.flush()
            check_stdout()
            return code
        except UserError as error:
            return _refuse([str(line) for line in error.args], debug)
        except KeyboardInterrupt:
            print("fewstep: interrupted", file=sys.stderr)
            return EXIT_INTERRUPTED
        except (OSError, MemoryError, RuntimeError) as error:
            if error is stdout.error:
                # What is still buffered is flushed at exit, where the interpreter would complain.
                os.dup2(os.open(os.devnull, os.O_WRONLY), stdout.fileno())
                if isinstance(error, BrokenPipeError):
                    return EXIT_BROKEN_PIPE
            if (message := machine_message(error)) is None:
                raise
            return _refuse([message], debug)
        finally:
            stderr.flush()


def one_line(text: str) -> str:
    """``text`` as one printable line: white space collapsed, other characters escaped, secrets blanked, cut."""
    plain = " ".join(without_secrets(text).split())
    shown = "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in plain)
    if len(shown) <= LONGEST_LINE:
        return shown
    half = LONGEST_LINE // 2 - 10
    return f"{shown[:half]} [...] {shown[-half:]}"


def machine_message(error: Exception) -> str | None:
    """The line for an error of the machine; None for any other."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return f"out of memory ({str(error).partition('. ')[0] or 'no more available'}): give a smaller --batch_size"
    for *numbers, advice in MACHINE_ERRORS:
        if isinstance(error, OSError) and error.errno in numbers:
            return f"{error.filename or 'a file'}: {error.strerror}: {advice}"
    if isinstance(error, OSError) and error.filename and error.strerror:  # a folder that vanished, say
        return f"{error.filename}: {error.strerror}: see that it is there and stays, then start again"
    return None


def _refuse(messages: list[str], debug: bool) -> int:
    if debug:
        print(without_secrets(traceback.format_exc()), end="", file=sys.stderr)
    for message in messages:
        print("fewstep: error:", one_line(message), file=sys.stderr)
    return EXIT_USER_ERROR
