"""Settings that Lightning takes without a word, or refuses only when a folder has been made for the run."""

from typing import Any

from fewstep.errors import UserError

LARGEST_SEED = 2**32 - 1
"""numpy's generators take no larger one."""


def check_settings(config: Any) -> None:
    """Raise ``UserError`` for a seed or a setting of the trainer out of range, before anything is made.

    ``config`` is what the command line was parsed to: ``seed_everything`` and ``trainer``.
    """
    seed, trainer = config.get("seed_everything"), config.trainer
    if seed is not None and not isinstance(seed, bool) and not 0 <= seed <= LARGEST_SEED:
        raise UserError(f"seed_everything is {seed}: expected a whole number from 0 to {LARGEST_SEED}")
    if trainer.max_steps < 1 and not trainer.fast_dev_run:
        raise UserError(
            f"trainer.max_steps is {trainer.max_steps}: training is counted in steps, not epochs; give a number of at "
            "least 1"
        )
    if not (trainer.val_check_interval is None or trainer.val_check_interval > 0):
        raise UserError(f"trainer.val_check_interval is {trainer.val_check_interval}: expected a number above 0")
    if not (trainer.gradient_clip_val is None or trainer.gradient_clip_val >= 0):
        raise UserError(
            f"trainer.gradient_clip_val is {trainer.gradient_clip_val}: expected a number of at least 0 or null"
        )
    _check_accelerator(trainer.accelerator)


def _check_accelerator(accelerator: Any) -> None:
    from lightning.pytorch.accelerators import AcceleratorRegistry

    known = ["auto", "gpu", *AcceleratorRegistry.available_accelerators()]
    if isinstance(accelerator, str) and accelerator not in known:
        raise UserError(f"trainer.accelerator is {accelerator!r}: expected one of {', '.join(sorted(known))}")
