"""Perplexity and entropy over network evaluations, and the tables that they stand in."""

from collections.abc import Sequence

from markupsafe import Markup
from matplotlib.figure import Figure

from fewstep.diagnostics.result import Picture, Series
from fewstep.evaluation.figures import ENTROPY_BAND_NATS, YARDSTICKS
from fewstep.evaluation.pictures import draw_picture
from fewstep.evaluation.sweep_row import table_lines
from fewstep.evaluation.table import COLUMNS
from fewstep.lab.report.alternative_text import alternative_text
from fewstep.lab.report.blocks import Chart, Table
from fewstep.lab.report.evidence import HEAD, PARALLEL, Evidence, Sampled
from fewstep.lab.report.svg import INK, figure_svg, legend_below, plain_log_axes
from fewstep.lab.report.wording import figure


def score_charts(evidences: Sequence[Evidence]) -> list[Chart]:
    """Two charts for each group of runs whose scores compare: those of one protocol, or of one run's own table."""
    charts = []
    for number, group in enumerate(groups_that_compare(evidences), 1):
        charts += _charts(group, f"-{number}")
    return charts


def groups_that_compare(evidences: Sequence[Evidence]) -> list[list[Evidence]]:
    """Runs whose rows carry the same protocol hash; a table without one stands by itself."""
    groups: dict[str, list[Evidence]] = {}
    for index, evidence in enumerate(evidences):
        if any(one.num_steps is not None for one in evidence.sampled):
            rows = evidence.run.rows
            groups.setdefault(rows[0].protocol_hash if rows else f"table {index}", []).append(evidence)
    return list(groups.values())


def score_table(evidence: Evidence, name: str) -> Table | None:
    """All rows of a run's sweep, else of its quickstart."""
    run = evidence.run
    if run.rows:
        heading, *lines = table_lines(run.rows)
        return Table(
            name, f"{run.name}: {evidence.scored_by()}; gamma is the strength of re-injection.", heading, tuple(lines)
        )
    if run.table is None:
        return None
    return Table(name, f"{run.name}. {run.table.caption()}", COLUMNS, tuple(row.cells() for row in run.table.rows))


def _charts(group: Sequence[Evidence], suffix: str) -> list[Chart]:
    lines = [line for evidence in group for line in _lines(evidence, len(group) > 1)]
    who = ", ".join(evidence.run.name for evidence in group)
    axis = "network evaluations a sample (NFE)"
    perplexity = Picture(
        f"Perplexity over network evaluations, {who}",
        axis,
        "perplexity",
        tuple(_series(label, line, "perplexity") for label, line in lines),
        log_x=True,
        log_y=True,
    )
    entropy = Picture(
        f"Entropy over network evaluations, {who}",
        axis,
        "entropy of a sample (nats)",
        tuple(_series(label, line, "entropy_nats") for label, line in lines),
        log_x=True,
    )
    yardsticks = [one for name in YARDSTICKS if (one := group[0].yardstick(name)) is not None]
    source = group[0].scored_by()
    return [
        _chart(perplexity, yardsticks, f"chart-perplexity{suffix}", f"Perplexity, lower is likelier. {who}; {source}."),
        _chart(
            entropy,
            yardsticks,
            f"chart-entropy{suffix}",
            f"Entropy: perplexities compare within {ENTROPY_BAND_NATS:g} nats of real text, the shaded band; lower is "
            "repetition.",
        ),
    ]


def _lines(evidence: Evidence, several: bool) -> list[tuple[str, list[Sampled]]]:
    lines = []
    for readout in (PARALLEL, HEAD):
        strengths = sorted({one.reinjection for one in evidence.flows(readout)})
        for gamma in [strengths[0], strengths[-1]] if several and len(strengths) > 2 else strengths:
            label = f"{readout}, gamma {gamma:g}"
            found = [one for one in evidence.flows(readout, gamma) if one.nfe]
            if found:
                lines.append((f"{evidence.run.name}: {label}" if several else label, found))
    return lines


def _series(label: str, line: Sequence[Sampled], measure: str) -> Series:
    x, y = tuple(float(one.nfe or 0) for one in line), tuple(float(getattr(one, measure)) for one in line)
    intervals = [one.perplexity_interval for one in line]
    if measure != "perplexity" or any(one is None for one in intervals):
        return Series(label, x, y)
    bounds = [(one.low, one.high) for one in intervals if one is not None]
    return Series(label, x, y, tuple(low for low, _ in bounds), tuple(high for _, high in bounds))


def _chart(picture: Picture, yardsticks: Sequence[Sampled], name: str, caption: str) -> Chart:
    values = [(one, one.perplexity if picture.log_y else one.entropy_nats) for one in yardsticks]
    levels = ". ".join(f"{one.name}: {figure(value)}" for one, value in values)
    alt = " ".join(filter(None, [alternative_text(picture), f"Levels to compare with: {levels}." if levels else ""]))

    def draw(into: Figure) -> None:
        axes = draw_picture(picture, into)
        axes.set_title("")
        for one, value in values:
            axes.axhline(value, color=INK, linestyle=YARDSTICKS[one.name][1], linewidth=1.1, label=one.name)
        real = next((value for one, value in values if one.name == "held-out text"), None)
        if real is not None and not picture.log_y:
            axes.axhspan(real - ENTROPY_BAND_NATS, real + ENTROPY_BAND_NATS, color=INK, alpha=0.1, linewidth=0)
        if any(one.x for one in picture.series):
            axes.set_xscale("log", base=2)
        plain_log_axes(axes)
        legend_below(into, axes)

    return Chart(name, caption, Markup(figure_svg(draw, alt, name=name)), picture)
