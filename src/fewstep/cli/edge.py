"""The edge to the user: exceptions become one line and an exit code, and the shipped YAML files are found."""

import os
import select
import sys
from collections.abc import Callable
from pathlib import Path

import fewstep
from fewstep.errors import UserError

EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130  # 128 + SIGINT, as a shell reports it
EXIT_BROKEN_PIPE = 141  # 128 + SIGPIPE


def run(command: Callable[[list[str]], int], argv: list[str]) -> int:
    """Call ``command(argv)`` and return its exit code.

    A UserError is told in one line on stderr (2), an interrupt likewise (130), and a reader of our output that went
    away ends the command quietly (141). Every other exception is a defect of ours and keeps its traceback.
    """
    try:
        code = command(argv)
        sys.stdout.flush()
        return code
    except UserError as error:
        print("fewstep: error:", " ".join(str(error).split()), file=sys.stderr)
        return EXIT_USER_ERROR
    except KeyboardInterrupt:
        print("fewstep: interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        if not _reader_is_gone(sys.stdout.fileno()):
            raise  # some other pipe broke, a data worker's for example: that is news
        # What is still buffered is flushed at exit; without this the interpreter would complain there.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_BROKEN_PIPE


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
