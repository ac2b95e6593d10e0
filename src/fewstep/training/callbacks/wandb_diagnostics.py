"""Results of diagnostics in wandb."""

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import wandb
from lightning.pytorch.loggers import WandbLogger

from fewstep.diagnostics import Diagnostic, Picture

STEP = "trainer/global_step"
"""The axis of WandbLogger's own metrics."""
HIGHEST = ("diag/stiffness_peak",)
"""Metrics whose highest value is the run's summary; of the others it is the last."""
PICTURES, HISTOGRAMS = "diag_pictures", "diag_histograms"
"""Not ``diag``, where some rows have the names of their results."""


def define(logger: WandbLogger, names: Iterable[str]) -> None:
    """Tell wandb the axis and the summary of metrics, before it sees them."""
    for name in names:
        summary = "max" if name in HIGHEST else "last"
        logger.experiment.define_metric(name, step_metric=STEP, step_sync=True, summary=summary)


def show(logger: WandbLogger, step: int, results: Iterable[Diagnostic], files: Mapping[str, Path]) -> None:
    """Log the picture ``files``, by the results' names, and a histogram of each result that has one."""
    for name, file in files.items():
        logger.log_image(f"{PICTURES}/{name}", [str(file)], step=step)
    pictures = {result.name: result.picture() for result in results}
    for name, picture in pictures.items():
        if picture is not None and picture.kind == "bars" and picture.series[0].x:
            logger.experiment.log({f"{HISTOGRAMS}/{name}": histogram(picture), STEP: step})


def histogram(picture: Picture) -> wandb.Histogram:
    """The first bars of ``picture`` with the edges between them."""
    bars = picture.series[0]
    half = (bars.x[1] - bars.x[0]) / 2 if len(bars.x) > 1 else 0.5
    edges = [bars.x[0] - half, *(x + half for x in bars.x)]
    return wandb.Histogram(np_histogram=(np.array(bars.y), np.array(edges)))
