"""Sharpness of all decoders side by side, raw and as a fraction."""

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup
from matplotlib.figure import Figure

from fewstep.diagnostics.result import Estimate
from fewstep.evaluation.canvas import SERIES
from fewstep.lab.report.blocks import Chart, Table
from fewstep.lab.report.evidence import Evidence
from fewstep.lab.report.svg import INK, figure_svg, plain_log_axes
from fewstep.lab.report.wording import estimate_text

TEXT_PLACES = {
    "dabi": "boundary next to data, normal",
    "dabi_worst": "boundary on a segment, worst direction",
    "dabi_segment": "boundary on a segment, along it",
    "dabi_data": "data, normal",
    "dabi_generated": "boundary next to generated, normal",
    "dabi_head": "commitment head, boundary, normal",
}
IMAGE_PLACES = {
    "dabi_worst": "middle of a segment, worst direction",
    "dabi_segment": "middle of a segment, along it",
    "dabi_data_segment": "data, along a segment",
}
BAR_INCHES = 0.3
LABEL_INCHES, WIDTH_INCHES = 2.9, 5.2
MOST_LETTERS = 36


@dataclass(frozen=True)
class Sharpness:
    """DABI_0 of one decoder at one kind of points; ``n`` numbers in its latent, ``source`` who measured it."""

    run: str
    place: str
    n: int | None
    raw: Estimate
    fraction: Estimate | None
    source: str


def sharpness_of(evidences: Sequence[Evidence]) -> list[Sharpness]:
    """Every row that the runs have, run by run."""
    rows = []
    for evidence in evidences:
        for name, place in (TEXT_PLACES if evidence.run.kind == "text" else IMAGE_PLACES).items():
            raw, told = evidence.estimate(name), evidence.told_by(name)
            if raw is not None and raw.value is not None:
                n = None if told is None else told.n
                source = "" if told is None else f"{told.origin}, {raw.num_examples} examples"
                rows.append(Sharpness(evidence.run.name, place, n, raw, evidence.estimate(f"{name}_fraction"), source))
    return rows


def sharpness_table(rows: Sequence[Sharpness]) -> Table | None:
    """The rows as a table; None for none."""
    if not rows:
        return None
    lines = tuple(
        (
            one.run,
            one.place,
            "–" if one.n is None else str(one.n),
            estimate_text(one.raw),
            estimate_text(one.fraction),
            one.source,
        )
        for one in rows
    )
    caption = (
        "DABI for r -> 0 with 95 % intervals (this project's definition, after arXiv:2606.30705). It is n at most, so "
        "decoders of different n compare by the fraction; those measured with other efforts compare roughly."
    )
    heading = ("decoder", "points, direction", "n", "DABI_0", "DABI_0 / n", "measured by")
    return Table("table-dabi", caption, heading, lines)


def sharpness_charts(rows: Sequence[Sharpness]) -> tuple[Chart | None, Chart | None]:
    """Bars on logarithmic axes: raw, and fraction."""
    if not rows:
        return None, None
    raw = [(one, one.raw) for one in rows]
    fraction = [(one, one.fraction) for one in rows if one.fraction is not None and one.fraction.value]
    first = _chart(raw, "chart-dabi", "DABI_0", "Sharpness, raw: 1 is a random direction.")
    if not fraction:
        return first, None
    caption = "The same over n: the share of all sensitivity that lies in the one direction."
    return first, _chart(fraction, "chart-dabi-fraction", "DABI_0 / n", caption)


def _chart(bars: Sequence[tuple[Sharpness, Estimate]], name: str, axis: str, caption: str) -> Chart:
    runs = list(dict.fromkeys(one.run for one, _ in bars))
    several = len(runs) > 1
    told = ". ".join(
        f"{one.run}, {one.place}: {estimate_text(value)}" if several else f"{one.place}: {estimate_text(value)}"
        for one, value in bars
    )
    # The name of a run stands on a line of its own above its bars: colour alone would not tell runs apart.
    lines: list[tuple[str, Estimate | None, int]] = []
    for index, run in enumerate(runs):
        lines += [(_short(run), None, index)] if several else []
        lines += [(one.place, value, index) for one, value in bars if one.run == run]
    height = BAR_INCHES * len(lines) + 0.8

    def draw(into: Figure) -> None:
        _draw(into, lines, axis, height)

    svg = figure_svg(draw, f"{caption} {told}.", name=name, size=(WIDTH_INCHES, height))
    return Chart(name, caption, Markup(svg))


def _draw(into: Figure, lines: Sequence[tuple[str, Estimate | None, int]], axis: str, height: float) -> None:
    left = LABEL_INCHES / WIDTH_INCHES
    axes = into.add_axes((left, 0.6 / height, 0.96 - left, 1 - 0.7 / height))
    for place, (_, estimate, run) in enumerate(lines):
        if estimate is None or estimate.value is None:
            continue
        value, between = estimate.value, estimate.interval
        whiskers = None if between is None else [[max(0.0, value - between.low)], [max(0.0, between.high - value)]]
        style = {"ecolor": INK, "elinewidth": 1.1, "capsize": 2}
        axes.barh(place, value, height=0.7, color=SERIES[run % len(SERIES)][0], xerr=whiskers, error_kw=style)
    axes.set_xscale("log")
    axes.set_yticks(range(len(lines)), [label for label, _, _ in lines], fontsize=9.5)
    for label, (_, estimate, _) in zip(axes.get_yticklabels(), lines, strict=True):
        label.set_fontweight("bold" if estimate is None else "normal")
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(len(lines) - 0.4, -0.6)
    axes.set_xlabel(axis)
    axes.set_axisbelow(True)
    axes.grid(alpha=0.25, axis="x")
    plain_log_axes(axes)


def _short(name: str) -> str:
    """What fits beside a bar."""
    return name if len(name) <= MOST_LETTERS else f"{name[: MOST_LETTERS - 1]}…"
