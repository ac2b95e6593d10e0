"""Exit codes of every command: one line whatever went wrong, its traceback when asked for, no secret in either."""

import errno
import os
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch

from fewstep.cli.main import LONGEST_LINE, errors_to_exit_code, one_line
from fewstep.errors import UserError


def failing(error: BaseException) -> Callable[[list[str]], int]:
    def command(argv: list[str]) -> int:
        assert argv == ["--steps", "0"], "--debug does not reach the command"
        raise error

    return command


def test_debug_shows_the_traceback_before_the_line_and_only_then(capsys: pytest.CaptureFixture[str]) -> None:
    assert errors_to_exit_code(failing(UserError("steps is 0")), ["--steps", "0"]) == 2
    assert capsys.readouterr().err == "fewstep: error: steps is 0\n"
    for place in range(3):
        argv = ["--steps", "0"]
        argv.insert(place, "--debug")
        assert errors_to_exit_code(failing(UserError("steps is 0")), argv) == 2
        err = capsys.readouterr().err
        assert err.startswith("Traceback")
        assert err.endswith("fewstep: error: steps is 0\n")


@pytest.mark.parametrize(
    ("error", "value", "advice"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "/runs/a"), "/runs/a: No space left", "free some space"),
        (PermissionError(errno.EACCES, "Permission denied", "/runs/a"), "/runs/a", "choose a folder"),
        (OSError(errno.EMFILE, "Too many open files"), "Too many open files", "less at a time"),
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "/runs/a"), "/runs/a: No such file", "stays"),
        (MemoryError(), "out of memory", "--batch_size"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate"), "CUDA out of memory", "--batch_size"),
    ],
)
def test_what_the_machine_refuses_is_a_line(
    error: Exception, value: str, advice: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert errors_to_exit_code(failing(error), ["--steps", "0"]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and value in err and advice in err


@pytest.mark.parametrize("error", [OSError(errno.ENOENT, "ours"), RuntimeError("ours"), ValueError("ours")])
def test_a_defect_keeps_its_traceback(error: Exception) -> None:
    with pytest.raises(type(error), match="ours"):
        errors_to_exit_code(failing(error), ["--steps", "0"])


def test_a_line_shows_what_does_not_print_and_keeps_both_ends_of_a_long_one() -> None:
    assert one_line("a\n  b\x1b[31m\x07 \udcff é") == "a b\\x1b[31m\\x07 \\udcff é"
    long = one_line(f"value {'x' * 10_000}; expected less")
    assert len(long) <= LONGEST_LINE and long.startswith("value x") and long.endswith("x; expected less")


def test_an_interrupt_exits_130() -> None:
    assert errors_to_exit_code(failing(KeyboardInterrupt()), ["--steps", "0"]) == 130


BROKEN_PIPE = """
import sys
from fewstep.cli.main import errors_to_exit_code
def command(argv):
    sys.stdin.readline()
    {body}
    return 0
sys.exit(errors_to_exit_code(command, []))
"""


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_reader_that_leaves_ends_the_command_quietly_but_another_broken_pipe_does_not(unbuffered: str) -> None:
    def exit_and_stderr(body: str, reader_leaves: bool) -> tuple[int, str]:
        child = subprocess.Popen(
            [sys.executable, "-c", BROKEN_PIPE.format(body=body)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
        )
        if reader_leaves:
            child.stdout.close()
        child.stdin.write("go\n")
        child.stdin.close()
        err = child.stderr.read()
        child.stderr.close()
        code = child.wait(timeout=30)
        child.stdout.close()
        return code, err

    assert exit_and_stderr("print('one line')", reader_leaves=True) == (141, "")
    code, err = exit_and_stderr("raise BrokenPipeError('of a worker')", reader_leaves=False)
    assert code == 1
    assert "of a worker" in err
