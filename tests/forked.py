"""``fewstep`` in real processes that start at once: a server that has imported everything forks them."""

import multiprocessing
import os
import sys
import time
from collections.abc import Callable
from multiprocessing.context import ForkServerProcess
from pathlib import Path

# Modules that the server imports before it forks; the other tests' rules for the environment come with the first.
PRELOADED = ["tests.conftest", "tests.forked", "fewstep.cli.evaluate", "fewstep.evaluation.sweep"]
PRELOADED += ["fewstep.training.command", "fewstep.pipeline"]


def _run(arguments: list[str], output: str) -> None:
    stream = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for number in (1, 2):
        os.dup2(stream, number)
    import torch

    from fewstep.cli.main import main

    torch.set_num_threads(1)
    sys.exit(main(arguments))


def start_command(arguments: list[str], output: Path) -> ForkServerProcess:
    """``fewstep`` with ``arguments`` in a process of its own on one thread; what it says is added to a file."""
    os.environ["OMP_NUM_THREADS"] = "1"
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    process = context.Process(target=_run, args=(arguments, str(output)))
    process.start()
    return process


def kill_when(process: ForkServerProcess, ready: Callable[[], bool], seconds: float = 120) -> bool:
    """SIGKILL a process as soon as ``ready``; whether that came before its end."""
    deadline = time.monotonic() + seconds
    while process.is_alive() and time.monotonic() < deadline:
        if ready():
            process.kill()
            process.join()
            return process.exitcode == -9
        time.sleep(0.0005)
    process.join(seconds)
    return False
