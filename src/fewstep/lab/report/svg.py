"""Pictures as SVG that stands inside a page: colours of the page's own text, no identifiers that clash, same bytes
every time."""

import io
import re
from collections.abc import Callable
from html import escape
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from fewstep.diagnostics.result import Picture
from fewstep.evaluation.pictures import draw_picture
from fewstep.lab.report.wording import figure as figure_text

INK = "#010203"
"""A colour that no series has: what is drawn in it takes the colour of the text around the picture."""
SETTINGS: dict[Any, Any] = {
    "svg.hashsalt": "fewstep",
    "svg.fonttype": "none",
    "text.parse_math": False,  # a run may be called after a price
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "grid.color": INK,
    "legend.labelcolor": INK,
    "font.size": 11,  # a phone shows these pictures at nine tenths of their size
    "axes.spines.top": False,
    "axes.spines.right": False,
}
SIZE_INCHES = (5.2, 3.4)
LONG_LABEL = 26
"""Names of more letters than this stand below each other."""


def picture_svg(picture: Picture, alt: str, *, name: str) -> str:
    """``picture`` as an ``<svg>`` element named by ``alt``, the text that says what it shows.

    ``name``, unlike that of any other picture of the page, comes before its identifiers.
    """

    def draw(figure: Figure) -> None:
        axes = draw_picture(picture, figure)
        axes.set_title("")  # the page's own heading says it
        plain_log_axes(axes)
        legend_below(figure, axes)

    return figure_svg(draw, alt, name=name)


def figure_svg(
    draw: Callable[[Figure], object], alt: str, *, name: str, size: tuple[float, float] = SIZE_INCHES
) -> str:
    """What ``draw`` puts into an empty figure of ``size`` inches, as :func:`picture_svg` gives it."""
    with rc_context(SETTINGS):
        figure = Figure(figsize=size)
        draw(figure)
        figure.patch.set_visible(False)
        for axes in figure.axes:
            axes.patch.set_visible(False)
        buffer = io.StringIO()
        nothing = {"Date": None, "Creator": None, "Format": None, "Type": None}
        FigureCanvasSVG(figure).print_svg(buffer, metadata=nothing)
    return _for_a_page(buffer.getvalue(), alt, name)


def legend_below(figure: Figure, axes: Axes) -> None:
    """The names of all lines under the axes, for which the figure is made taller: they never hide a line."""
    handles, labels = axes.get_legend_handles_labels()
    if (legend := axes.get_legend()) is not None:
        legend.remove()
    if len(labels) < 2:
        axes.set_position((0.16, 0.18, 0.82, 0.79))
        return
    columns = 2 if max(map(len, labels)) <= LONG_LABEL else 1
    rows = -(-len(labels) // columns)
    width, height = figure.get_size_inches()
    extra = 0.22 * rows + 0.1
    total = height + extra
    left, bottom, right, top = 0.16, (0.6 + extra) / total, 0.98, 1 - 0.12 / total
    axes.set_position((left, bottom, right - left, top - bottom))
    figure.set_size_inches(width, total)
    figure.legend(handles, labels, loc="lower left", ncols=columns, frameon=False, fontsize=10, handlelength=2.4)


def plain_log_axes(axes: Axes) -> None:
    """Numbers on logarithmic axes as they are read: 0.01, 100, 10,000."""
    for axis in (axes.xaxis, axes.yaxis):
        if axis.get_scale() == "log":
            _plain(axis)


def _plain(axis: Axis) -> None:
    axis.set_major_formatter(FuncFormatter(lambda value, _: figure_text(value)))
    axis.set_minor_formatter(NullFormatter())


def _for_a_page(svg: str, alt: str, name: str) -> str:
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg, flags=re.S)
    svg = re.sub(r"<!--.*?-->\s*", "", svg, flags=re.S)  # matplotlib repeats every text in a comment
    used = set(re.findall(r'href="#([^"]+)"', svg)) | set(re.findall(r"url\(#([^)]+)\)", svg))

    def identifier(match: re.Match[str]) -> str:
        return f' id="{name}-{match[1]}"' if match[1] in used else ""

    svg = re.sub(r'\sid="([^"]+)"', identifier, svg)
    svg = svg.replace("url(#", f"url(#{name}-").replace('xlink:href="#', f'href="#{name}-')
    svg = svg.replace(INK, "currentColor")
    # The page's own letters, whether matplotlib writes them in one property or in several.
    svg = re.sub(r"font: ([0-9.]+)px [^;\"]+", r"font-size: \1px", svg)
    svg = re.sub(r"font-family: [^;\"]+; ", "", svg)
    view = re.search(r'viewBox="([^"]+)"', svg)
    assert view is not None
    opening = f'<svg role="img" aria-label="{escape(alt)}" viewBox="{view[1]}" xmlns="http://www.w3.org/2000/svg">'
    return opening + re.sub(r"^<svg[^>]*>", "", svg, count=1).strip()
