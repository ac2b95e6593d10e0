"""A sweep in wandb: its table and its pictures."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from lightning.pytorch.loggers import WandbLogger

from fewstep.evaluation.sweep_row import SweepRow, table_lines
from fewstep.training.loggers import default_loggers, finish_wandb

TABLE, PICTURES = "sweep", "sweep_pictures"


def log_sweep(rows: Sequence[SweepRow], pictures: Mapping[str, Path], folder: Path) -> bool:
    """Log ``rows`` as a table and the PNG files ``pictures`` by their names, as a run of its own kept in ``folder``.

    False where ``WANDB_MODE`` is disabled and nothing was logged: see :mod:`fewstep.training.loggers`.
    """
    for logger in default_loggers(folder):
        if isinstance(logger, WandbLogger):
            heading, *lines = table_lines(rows)
            logger.log_table(TABLE, columns=list(heading), data=[list(line) for line in lines])
            for name, file in pictures.items():
                logger.log_image(f"{PICTURES}/{name}", [str(file)])
            finish_wandb()
            return True
    return False
