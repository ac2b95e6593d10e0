"""The pictures of the exact laboratory."""

from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator, ScalarFormatter

from fewstep.diagnostics.result import Picture, Series
from fewstep.evaluation.canvas import write_png
from fewstep.evaluation.pictures import write_picture
from fewstep.lab.theory import Curve, Surface

ISO_LEVELS = (0.03, 0.1, 0.3, 0.6)
"""Errors whose lines are drawn on a surface."""


def write_theory_picture(study: Curve | Surface, file: str | Path) -> None:
    """Draw a study into the PNG ``file``. Raises ``UserError`` where it cannot be written."""
    if isinstance(study, Surface):
        _write_surface(study, file)
        return
    series = tuple(Series(line.label, line.x, line.y, line.low, line.high) for line in study.lines)
    picture = Picture(study.title, study.x_label, study.y_label, series, log_x=study.log_x, log_y=study.log_y)
    write_picture(picture, file)


def _write_surface(study: Surface, file: str | Path) -> None:
    """Error by colour over steps and cap, one panel a sampler, with lines of equal error."""
    figure = Figure(figsize=(5.2 * len(study.panels), 4.4), layout="constrained")
    filled = None
    for axes, panel in zip(figure.subplots(1, len(study.panels), squeeze=False)[0], study.panels, strict=True):
        errors = [[share.value for share in row] for row in panel.errors]
        filled = axes.contourf(study.caps, study.steps, errors, levels=20, cmap="cividis", vmin=0, vmax=1)
        lines = axes.contour(study.caps, study.steps, errors, levels=ISO_LEVELS, colors="white", linewidths=1.2)
        axes.clabel(lines, fmt="%g", fontsize=8)
        axes.set(xscale="log", yscale="log", xlabel="cap of the Jacobian's norm", ylabel="steps K", title=panel.label)
        for axis, ticks in ((axes.xaxis, study.caps[::4]), (axes.yaxis, study.steps[::2])):
            axis.set_major_locator(FixedLocator(list(ticks)))
            axis.set_minor_locator(NullLocator())
            axis.set_major_formatter(ScalarFormatter())
    if filled is not None:
        figure.colorbar(filled, ax=figure.axes, label="share of samples between modes", ticks=(0, 0.25, 0.5, 0.75, 1))
    figure.suptitle(study.title, fontsize=11)
    write_png(figure, file)
