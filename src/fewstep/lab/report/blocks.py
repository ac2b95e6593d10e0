"""What a section of the page consists of: charts, tables and texts."""

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from fewstep.diagnostics.result import Picture, Series
from fewstep.lab.report.alternative_text import alternative_text
from fewstep.lab.report.evidence import Evidence
from fewstep.lab.report.svg import picture_svg


@dataclass(frozen=True)
class Chart:
    """A picture with its ``caption``; ``name`` is its own on the page, ``picture`` its data where it is one."""

    name: str
    caption: str
    svg: Markup
    picture: Picture | None = None
    kind: str = "chart"


@dataclass(frozen=True)
class Table:
    """``heading`` and ``rows`` of strings, the first cell of a row being its name."""

    name: str
    caption: str
    heading: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    kind: str = "table"


@dataclass(frozen=True)
class TextGroup:
    """Texts of one ``setting``, and whether they are among those that are shown at once."""

    setting: str
    figures: str
    texts: tuple[str, ...]
    first: bool = True


@dataclass(frozen=True)
class Texts:
    """Sample texts of one run."""

    title: str
    groups: tuple[TextGroup, ...]
    kind: str = "texts"


Block = Chart | Table | Texts


@dataclass(frozen=True)
class Section:
    """A section with a heading: ``intro`` tells how to read it, ``missing`` how to get it where ``blocks`` is empty."""

    key: str
    title: str
    intro: str
    blocks: tuple[Block, ...]
    missing: str


def chart_of(picture: Picture, name: str, caption: str) -> Chart:
    """A chart of picture data, with the alternative text that follows from them."""
    return Chart(name, caption, Markup(picture_svg(picture, alternative_text(picture), name=name)), picture)


def overlay(
    evidences: Sequence[Evidence],
    curves: dict[str, str],
    title: str,
    x_label: str,
    y_label: str,
    *,
    kind: str = "lines",
    log_x: bool = False,
    log_y: bool = False,
    density: bool = False,
) -> Picture | None:
    """The same quantities of all runs in one picture: ``curves`` gives the label of each curve's name.

    Several runs say their names. ``density`` turns shares of bars into densities, which compare where bars differ in
    width. None where no run has any of the curves.
    """
    several = sum(any(one.curve(name) is not None for name in curves) for one in evidences) > 1
    series = []
    for evidence in evidences:
        for name, label in curves.items():
            curve = evidence.curve(name)
            if curve is not None and curve.x:
                named = f"{evidence.run.name}: {label}" if several and len(curves) > 1 else label
                named = evidence.run.name if several and len(curves) == 1 else named
                heights = _density(curve) if density else curve.y
                series.append(Series(named, curve.x, heights, curve.low, curve.high))
    if not series:
        return None
    bars = kind == "bars" and len(series) == 1
    return Picture(title, x_label, y_label, tuple(series), "bars" if bars else "lines", log_x, log_y)


def _density(bars: Series) -> tuple[float, ...]:
    width = bars.x[1] - bars.x[0] if len(bars.x) > 1 else 1.0
    return tuple(value / width for value in bars.y) if width > 0 else bars.y


def present(blocks: Sequence[Block | None]) -> tuple[Block, ...]:
    """Drop the Nones."""
    return tuple(block for block in blocks if block is not None)
