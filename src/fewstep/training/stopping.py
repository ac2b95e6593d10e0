"""Exception for a run that a signal stopped: raised by the callbacks, reported by the command line."""

from pathlib import Path


class TrainingStopped(KeyboardInterrupt):
    """A signal stopped the run after ``step`` optimizer steps.

    ``checkpoint`` is the file to resume from, None if no step was done. ``first_process`` is true on rank 0, which
    reports it.
    """

    def __init__(self, signal_number: int, step: int, checkpoint: Path | None, *, first_process: bool = True) -> None:
        super().__init__(f"stopped by signal {signal_number} after {step} steps")
        self.signal_number = signal_number
        self.step = step
        self.checkpoint = checkpoint
        self.first_process = first_process
