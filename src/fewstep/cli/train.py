"""``fewstep train``: one stage from a YAML file of settings."""

import sys

from fewstep.cli.sizes import expand_size

EXIT_TERMINATED = 143  # 128 + SIGTERM, as a shell reports it
GO_ON = "fewstep: stopped; the same command with --ckpt_path last goes on from here"


def main(argv: list[str]) -> int:
    """Train by LightningCLI: ``argv`` is ``fit --config FILE [--size NAME] ...``. Returns the exit code.

    Raises UserError for a wrong key or value, naming it, and ``KeyboardInterrupt`` after Ctrl-C. A run that was
    stopped has written a checkpoint and says how to go on.
    """
    arguments = expand_size(argv)
    from lightning.pytorch.utilities.exceptions import SIGTERMException

    from fewstep.training.command import run_training

    try:
        run_training(arguments)
    except SIGTERMException:
        print(GO_ON, file=sys.stderr)
        return EXIT_TERMINATED
    except KeyboardInterrupt:
        print(GO_ON, file=sys.stderr)
        raise
    return 0
