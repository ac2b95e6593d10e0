"""How a run tells that it was stopped."""

from pathlib import Path


class TrainingStopped(KeyboardInterrupt):
    """A run that a signal ended. Like its base, it passes through code that handles failures.

    ``signal_number`` is the signal, ``step`` the optimizer steps done, ``checkpoint`` the file to go on from, or None
    where nothing was saved, because no step was done yet. ``first_process`` is false in all processes of a run but the
    one that speaks to the user.
    """

    def __init__(self, signal_number: int, step: int, checkpoint: Path | None, *, first_process: bool = True) -> None:
        super().__init__(f"stopped by signal {signal_number} after {step} steps")
        self.signal_number = signal_number
        self.step = step
        self.checkpoint = checkpoint
        self.first_process = first_process
