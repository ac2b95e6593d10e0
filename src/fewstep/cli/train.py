"""``fewstep train``: one stage from a YAML file of settings."""

import sys

SIGNAL_EXIT = 128
"""A shell reports a process that a signal ended as 128 plus the signal's number: 130 for Ctrl-C, 143 for SIGTERM."""


def main(argv: list[str]) -> int:
    """Train by LightningCLI: ``argv`` is ``fit --config NAME_OR_FILE [--size NAME] ...``. Returns the exit code.

    A run that a signal stopped has written a checkpoint; one line says how to resume.
    """
    from fewstep.training.callbacks.interruptions import TrainingStopped
    from fewstep.training.command import run_training

    try:
        run_training(argv)
    except TrainingStopped as stopped:
        if stopped.first_process:
            resume = "stopped before anything was saved; the same command starts again from step 0"
            if stopped.checkpoint is not None:
                resume = f"stopped after {stopped.step:,} steps; the same command with --ckpt_path last resumes there"
            print("fewstep:", resume, file=sys.stderr)
        return SIGNAL_EXIT + stopped.signal_number
    return 0
