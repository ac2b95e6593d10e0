"""The ``fewstep`` command: picks a command by its name and imports no more than that one."""

import os
import sys
from collections.abc import Sequence
from importlib import import_module

from fewstep import __version__
from fewstep.cli.exit_codes import errors_to_exit_code
from fewstep.errors import UserError

# name -> (help in one line, module with main(argv: list[str]) -> int)
COMMANDS: dict[str, tuple[str, str]] = {
    "quickstart": ("train, sample and score on the built-in text, in minutes", "fewstep.cli.quickstart"),
    "train": ("train one stage from a YAML file of settings", "fewstep.cli.train"),
    "configs": ("list the shipped settings, or copy them into a folder", "fewstep.cli.configs"),
    "sample": ("write text with a saved model", "fewstep.cli.sample"),
    "evaluate": ("score samples over steps, re-injection and readouts, beside real text", "fewstep.cli.evaluate"),
    "compare": ("train objectives on one model's latents and compare their samples", "fewstep.cli.compare"),
    "scorer": ("make a local language model that scores text, from an installed package", "fewstep.cli.scorer"),
    "diagnose": ("measure how sharp a model's readout is and where tokens are decided", "fewstep.cli.diagnose"),
    "report": ("write one page on runs: verdict, curves, texts and a viewer", "fewstep.cli.report"),
    "theory": ("study where few-step sampling fails in closed form, without training", "fewstep.cli.theory"),
    "convert": ("make a saved model of training checkpoints", "fewstep.cli.convert"),
}


def usage() -> str:
    """The help text: every command with its line."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {help_line}" for name, (help_line, _) in COMMANDS.items()]
    return "\n".join(
        [
            "usage: fewstep COMMAND [OPTIONS]",
            "",
            *lines,
            "",
            "fewstep COMMAND --help shows the options of a command; fewstep --version shows the version;",
            "--debug with any command shows where in the code an error came from.",
        ]
    )


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
