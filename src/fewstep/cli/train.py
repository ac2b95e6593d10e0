"""``fewstep train``: one stage from a YAML file of settings."""

import sys

from fewstep.cli.sizes import check_settings_files, expand_size

SIGNAL_EXIT = 128
"""A shell reports a process that a signal ended as 128 plus the signal's number: 130 for Ctrl-C, 143 for SIGTERM."""


def main(argv: list[str]) -> int:
    """Train by LightningCLI: ``argv`` is ``fit --config FILE [--size NAME] ...``. Returns the exit code.

    Raises ``UserError`` for a wrong key or value, naming it. A run that a signal stopped has written a checkpoint,
    and one line says how to go on.
    """
    check_settings_files(argv)
    arguments = expand_size(argv)
    from fewstep.training.command import run_training
    from fewstep.training.stopping import TrainingStopped

    try:
        run_training(arguments)
    except TrainingStopped as stopped:
        if stopped.first_process:
            print("fewstep:", told(stopped.step, stopped.checkpoint is not None), file=sys.stderr)
        return SIGNAL_EXIT + stopped.signal_number
    return 0


def told(step: int, saved: bool) -> str:
    """The line for a run that was stopped after ``step`` steps."""
    if not saved:
        return "stopped before anything was saved; the same command starts anew"
    return f"stopped after {step:,} steps; the same command with --ckpt_path last goes on from there"
