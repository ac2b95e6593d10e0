"""Charts as inline SVG: one style for all, in the colours of the page's text, each with an alternative text."""

import io
import re
from collections.abc import Mapping
from dataclasses import dataclass
from html import escape
from typing import Any

from markupsafe import Markup
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullFormatter

from fewstep.diagnostics.result import Picture, Series
from fewstep.evaluation.pictures import draw_picture
from fewstep.lab.report.figures import rounded

INK = "#010203"
"""A colour that no series has: what is drawn in it takes the colour of the text around the chart."""
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,  # a run may be called after a price
    **dict.fromkeys(
        ("text.color", "axes.edgecolor", "axes.labelcolor", "axes.titlecolor", "xtick.color", "ytick.color"), INK
    ),
    "grid.color": INK,
    "font.size": 11,  # a phone shows these charts at nine tenths of their size
    "axes.spines.top": False,
    "axes.spines.right": False,
}
WIDTH_INCHES, HEIGHT_INCHES, LINE_INCHES = 5.2, 3.3, 0.24
LONG_LABEL = 26
"""Labels of more letters than this stand below each other in the legend."""
LEVEL_DASHES = ("-", "--", "-.", ":", (0, (1, 3)))
MOST_SERIES = 8
"""Series beyond these are counted in the alternative text, not described."""


@dataclass(frozen=True)
class Chart:
    """A drawn ``picture`` with its ``caption``; ``name`` is unique on the page."""

    name: str
    caption: str
    svg: Markup
    picture: Picture


def chart(
    picture: Picture,
    name: str,
    caption: str,
    *,
    levels: Mapping[str, float] | None = None,
    band: tuple[float, float] | None = None,
) -> Chart:
    """Draw ``picture``; ``levels`` are horizontal lines by their labels, ``band`` a shaded range of y."""
    levels = levels or {}
    with rc_context({**STYLE, "svg.hashsalt": name}):
        figure = Figure(figsize=(WIDTH_INCHES, HEIGHT_INCHES))
        axes = draw_picture(picture, figure)
        for (label, value), dashes in zip(levels.items(), LEVEL_DASHES, strict=False):
            axes.axhline(value, color=INK, linestyle=dashes, linewidth=1.1, label=label)
        if band:
            axes.axhspan(*band, color=INK, alpha=0.1, linewidth=0)
        axes.set_title("")  # the page's own caption says it
        _plain_numbers(axes.yaxis)
        _place_legend(axes, figure)
        _plain_numbers(axes.xaxis)
        axes.patch.set_visible(False)
        figure.patch.set_visible(False)
        buffer = io.StringIO()
        FigureCanvasSVG(figure).print_svg(buffer, metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    svg = _inline(buffer.getvalue(), alternative_text(picture, levels), name)
    return Chart(name, caption, Markup(svg), picture)


def _plain_numbers(axis: Axis) -> None:
    """Numbers as they are read: 0.01, 100, 10,000; on a short logarithmic axis more than the powers of ten."""
    if axis.get_scale() == "log" and not isinstance(axis.get_major_locator(), FixedLocator):
        low, high = sorted(axis.get_view_interval())
        if high < 20 * low:
            axis.set_major_locator(MaxNLocator(5))
        axis.set_minor_formatter(NullFormatter())
    if not isinstance(axis.get_major_locator(), FixedLocator):
        axis.set_major_formatter(FuncFormatter(lambda value, _: rounded(value)))


def _place_legend(axes: Axes, figure: Figure) -> None:
    """Under the axes, for which the figure grows: a legend never hides a line."""
    handles, labels = axes.get_legend_handles_labels()
    if (legend := axes.get_legend()) is not None:
        legend.remove()
    columns = 2 if max(map(len, labels), default=0) <= LONG_LABEL else 1
    below = 0.62 + (LINE_INCHES * -(-len(labels) // columns) if len(labels) > 1 else 0)
    height = HEIGHT_INCHES + below - 0.62
    figure.set_size_inches(WIDTH_INCHES, height)
    left = 0.09 + 0.016 * max(len(rounded(tick)) for tick in axes.get_yticks())
    axes.set_position((left, below / height, 0.97 - left, 1 - (below + 0.1) / height))
    if len(labels) > 1:
        style = {"frameon": False, "fontsize": 10, "handlelength": 2.4}
        figure.legend(handles, labels, loc="lower left", ncols=columns, **style)


def alternative_text(picture: Picture, levels: Mapping[str, float]) -> str:
    """Title and axes, and where each series begins and ends, and its extremes."""
    shown = [series for series in picture.series if series.x]
    parts = [f"{picture.title}: {picture.kind} of {picture.y_label} over {picture.x_label}."]
    parts += map(_series_text, shown[:MOST_SERIES])
    if len(shown) > MOST_SERIES:
        parts.append(f"{len(shown) - MOST_SERIES} more series.")
    parts += [f"Level of {label}: {rounded(value)}." for label, value in levels.items()]
    return " ".join(parts)


def _series_text(series: Series) -> str:
    points = sorted(zip(series.x, series.y, strict=True))
    (first_x, first_y), (last_x, last_y) = points[0], points[-1]
    text = f"{series.label}: {rounded(first_y)} at {rounded(first_x)}"
    if len(points) > 1:
        text += (
            f" to {rounded(last_y)} at {rounded(last_x)}, between {rounded(min(series.y))} and {rounded(max(series.y))}"
        )
    return text + "."


def _inline(svg: str, alt: str, name: str) -> str:
    """``svg`` as an element of a page that holds several: identifiers of its own, the page's colour and letters."""
    svg = re.sub(r"<metadata>.*?</metadata>\s*|<!--.*?-->\s*", "", svg[svg.index("<svg") :], flags=re.S)
    svg = re.sub(r'\b(id="|href="#)|url\(#', lambda start: f"{start[0]}{name}-", svg)
    svg = re.sub(r"font: ([0-9.]+)px [^;\"]+", r"font-size: \1px", svg.replace(INK, "currentColor"))
    svg = re.sub(r"font-family: [^;\"]+; ", "", svg)
    view = re.search(r'viewBox="[^"]+"', svg)
    opening = (
        f'<svg role="img" aria-label="{escape(alt)}" {view[0] if view else ""} xmlns="http://www.w3.org/2000/svg">'
    )
    return opening + re.sub(r"^<svg[^>]*>", "", svg).strip()
