"""Charts as inline SVG: one style for all, in the colours of the page's text, each with an alternative text."""

import io
import re
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
INKED = ("text.color", "axes.edgecolor", "axes.labelcolor", "axes.titlecolor", "xtick.color", "ytick.color")
STYLE: dict[Any, Any] = {
    **dict.fromkeys((*INKED, "grid.color"), INK),
    "svg.fonttype": "none",
    "text.parse_math": False,  # a run may be called after a price
    "font.size": 11,  # a phone shows these charts at nine tenths of their size
    "axes.spines.top": False,
    "axes.spines.right": False,
}
WIDTH_INCHES, HEIGHT_INCHES, LINE_INCHES, BELOW_INCHES = 5.2, 3.3, 0.24, 0.62
LONG_LABEL = 26
"""Labels of more letters than this stand below each other in the legend."""


@dataclass(frozen=True)
class Chart:
    """A drawn ``picture`` with its ``caption``; ``name`` is unique on the page."""

    name: str
    caption: str
    svg: Markup
    picture: Picture


def chart(picture: Picture, name: str, caption: str) -> Chart:
    """Draw ``picture``."""
    with rc_context({**STYLE, "svg.hashsalt": name}):
        figure = Figure(figsize=(WIDTH_INCHES, HEIGHT_INCHES))
        axes = draw_picture(picture, figure)
        axes.set_title("")  # the page's own caption says it
        _plain_numbers(axes.yaxis)
        _place_legend(axes, figure)
        _plain_numbers(axes.xaxis)
        axes.patch.set_visible(False)
        figure.patch.set_visible(False)
        buffer = io.StringIO()
        FigureCanvasSVG(figure).print_svg(buffer, metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    svg = _inline(buffer.getvalue(), alternative_text(picture), name)
    return Chart(name, caption, Markup(svg), picture)


def _plain_numbers(axis: Axis) -> None:
    """Numbers as they are read: 0.01, 100, 10,000; on a short logarithmic axis more than the powers of ten."""
    if isinstance(axis.get_major_locator(), FixedLocator):
        return
    if axis.get_scale() == "log":
        low, high = sorted(axis.get_view_interval())
        if high < 20 * low:
            axis.set_major_locator(MaxNLocator(5))
        axis.set_minor_formatter(NullFormatter())
    axis.set_major_formatter(FuncFormatter(lambda value, _: rounded(value)))


def _place_legend(axes: Axes, figure: Figure) -> None:
    """Under the axes, for which the figure grows: a legend never hides a line."""
    handles, labels = axes.get_legend_handles_labels()
    if (legend := axes.get_legend()) is not None:
        legend.remove()
    columns = 2 if max(map(len, labels), default=0) <= LONG_LABEL else 1
    below = BELOW_INCHES + (LINE_INCHES * -(-len(labels) // columns) if len(labels) > 1 else 0)
    height = HEIGHT_INCHES + below - BELOW_INCHES
    figure.set_size_inches(WIDTH_INCHES, height)
    left = 0.09 + 0.016 * max(len(rounded(tick)) for tick in axes.get_yticks())
    axes.set_position((left, below / height, 0.97 - left, 1 - (below + 0.1) / height))
    if len(labels) > 1:
        style = {"frameon": False, "fontsize": 10, "handlelength": 2.4}
        figure.legend(handles, labels, loc="lower left", ncols=columns, **style)


def alternative_text(picture: Picture) -> str:
    """Title and axes, and where each series begins and ends, and its extremes."""
    heading = f"{picture.title}: {picture.kind} of {picture.y_label} over {picture.x_label}."
    return " ".join([heading, *(_series_text(series) for series in picture.series if series.x)])


def _series_text(series: Series) -> str:
    points = [f"{rounded(y)} at {rounded(x)}" for x, y in sorted(zip(series.x, series.y, strict=True))]
    if len(points) == 1:
        return f"{series.label}: {points[0]}."
    lowest, highest = rounded(min(series.y)), rounded(max(series.y))
    return f"{series.label}: {points[0]} to {points[-1]}, between {lowest} and {highest}."


def _inline(svg: str, alt: str, name: str) -> str:
    """``svg`` as an element of a page that holds several: identifiers of its own, the page's colour and letters."""
    for pattern, replacement in (
        (r"<metadata>.*?</metadata>\s*|<!--.*?-->\s*", ""),
        (r'\bid="|href="#|url\(#', rf"\g<0>{name}-"),
        (INK, "currentColor"),
        (r"font: ([0-9.]+)px [^;\"]+", r"font-size: \1px"),
        (r"font-family: [^;\"]+; ", ""),
    ):
        svg = re.sub(pattern, replacement, svg, flags=re.S)
    _, view, content = re.split(r'<svg[^>]*(viewBox="[^"]+")[^>]*>', svg)
    return f'<svg role="img" aria-label="{escape(alt)}" {view} xmlns="http://www.w3.org/2000/svg">{content.strip()}'
