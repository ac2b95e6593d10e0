"""Pictures as data drawn into PNG files, without pyplot, so that nothing global changes."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from fewstep.diagnostics.result import Picture, Series
from fewstep.errors import UserError

# Okabe and Ito's palette, safe for every common colour blindness; markers and dashes repeat what colour says.
SERIES = (("#0072B2", "o"), ("#D55E00", "s"), ("#009E73", "^"), ("#CC79A7", "D"), ("#E69F00", "v"), ("#56B4E9", "P"))
DASHES = ("-", "--", "-.", ":")
MOST_MARKS, MOST_INSIDE = 8, 5
FEW_POINTS, LEGEND_INCHES = 30, 3.9
"""Lines of fewer points show them: a single one would draw no line. Legends of more lines than ``MOST_INSIDE`` stand
beside the picture, of several in ``LEGEND_INCHES``; logarithmic axes write out up to ``MOST_MARKS`` values."""


def write_png(figure: Figure, file: str | Path) -> None:
    """Draw ``figure`` into ``file``, whose folder is made. Raises ``UserError`` where it cannot be written."""
    try:
        Path(file).parent.mkdir(parents=True, exist_ok=True)
        FigureCanvasAgg(figure).print_png(str(file))
    except OSError as error:
        raise UserError(f"cannot write the figure {file}: {error.strerror or error}") from None


def write_picture(picture: Picture, file: str | Path) -> None:
    """Draw ``picture`` into the PNG ``file``: lines with their intervals shaded, or bars.

    Values that a logarithmic axis cannot show are left out by it. Series without points are passed over, so that a
    picture of nothing has bare axes. Raises ``UserError`` where ``file`` cannot be written.
    """
    figure = Figure(figsize=(6.5, 4))
    axes = draw_picture(picture, figure)
    if sum(bool(series.x) for series in picture.series) > MOST_INSIDE:
        figure.set_size_inches(9.5, 4)
        axes.set_position((0.08, 0.14, 0.58, 0.77))
        axes.legend(frameon=False, fontsize=9, loc="center left", bbox_to_anchor=(1.01, 0.5))
    write_png(figure, file)


def write_pictures(pictures: Sequence[Picture], file: str | Path) -> None:
    """Draw ``pictures`` of the same series side by side, with one legend. Raises ``UserError`` as :func:`write_png`."""
    figure = Figure(figsize=(5.2 * len(pictures) + LEGEND_INCHES, 4.4))
    width = 1 - LEGEND_INCHES / (5.2 * len(pictures) + LEGEND_INCHES)
    for index, picture in enumerate(pictures):
        axes = draw_picture(picture, figure)
        axes.set_position((width * (index + 0.14) / len(pictures), 0.14, width * 0.82 / len(pictures), 0.77))
        if (own := axes.get_legend()) is not None:
            own.remove()
    handles = figure.axes[0].get_legend_handles_labels()
    figure.legend(*handles, loc="center right", frameon=False, fontsize=8, handlelength=3.2)
    write_png(figure, file)


def draw_picture(picture: Picture, figure: Figure) -> Axes:
    """Draw ``picture`` into an empty ``figure`` as :func:`write_picture` does, and give its axes."""
    # Fixed margins: a layout that is computed takes half of the time, and training waits for these pictures.
    axes = figure.add_axes((0.12, 0.14, 0.85, 0.77))
    shown = [series for series in picture.series if series.x]
    for index, series in enumerate(shown):
        _draw(axes, series, index, picture.kind)
    axes.set(xlabel=picture.x_label, ylabel=picture.y_label, title=picture.title)
    places = sorted({x for series in shown for x in series.x if x > 0})
    if picture.log_x and places:
        axes.set_xscale("log")
        is_few, is_short = len(places) <= MOST_MARKS, places[-1] < 100 * places[0]
        if is_few or is_short:  # where matplotlib would write labels of minor ticks over each other
            axes.xaxis.set_minor_locator(NullLocator())
        if is_few:  # such as numbers of steps; powers of ten would say less
            axes.set_xticks(places, [f"{place:g}" for place in places])
        elif is_short:
            axes.xaxis.set(major_locator=LogLocator(subs=(1, 2, 5)), major_formatter="{x:g}")
    if picture.log_y and any(y > 0 for series in shown for y in series.y):
        axes.set_yscale("log")
    axes.set_axisbelow(True)
    axes.grid(alpha=0.25)
    if len(shown) > 1:
        axes.legend(frameon=False, fontsize=9)
    return axes


def _draw(axes: Axes, series: Series, index: int, kind: str) -> None:
    color, marker = SERIES[index % len(SERIES)]
    if kind == "bars":
        width = series.x[1] - series.x[0] if len(series.x) > 1 else 1.0
        axes.bar(series.x, series.y, width=0.92 * width, label=series.label, color=color)
        return
    axes.plot(
        series.x,
        series.y,
        label=series.label,
        color=color,
        marker=marker if len(series.x) < FEW_POINTS else None,
        markersize=5,
        linewidth=1.8,
        linestyle=DASHES[index // len(SERIES) % len(DASHES)],
    )
    if series.low is not None and series.high is not None:
        axes.fill_between(series.x, series.low, series.high, color=color, alpha=0.18, linewidth=0)
