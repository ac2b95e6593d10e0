"""The chart of a sweep: perplexity and entropy over what sampling costs."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

from fewstep.evaluation.pictures import DASHES, SERIES, write_png
from fewstep.evaluation.rows import COLUMNS, FLOW, HELD_OUT, Row

YARDSTICKS = {
    "held-out text": ("#000000", "-"),
    "language model": ("#009E73", "--"),
    "words shuffled": ("#777777", "-."),
    "unigram draws": ("#999999", ":"),
    "pure noise": ("#CC79A7", (0, (1, 3))),
}
ENTROPY_BAND_NATS = 0.3
"""Perplexities compare only among samples whose entropy is this close to real text's."""


@dataclass(frozen=True)
class Cost:
    """The x axis of a chart: its ``label``, and ``of`` a row."""

    label: str
    of: Callable[[Row], float | None]


def _seconds(row: Row) -> float | None:
    speed = row.value("tokens_per_second")
    return None if speed is None else 1000 / speed


STEPS = Cost("steps K", lambda row: float(row.setting["num_steps"]))
NFE = Cost("NFE: forward passes a sample, the readout's included", lambda row: row.value("nfe"))
SECONDS = Cost("seconds for 1,000 tokens", _seconds)


def write_sweep_chart(rows: Sequence[Row], cost: Cost, file: str | Path, *, scorer: str) -> None:
    """Perplexity over ``cost`` (log-log) with unigram entropy beside it; one line per setting, whose points are its
    numbers of steps.

    Whiskers are 95 % intervals, yardsticks horizontal lines, and the band is real text's entropy +- 0.3 nats. Rows
    without a perplexity or a cost are left out. Raises ``UserError`` where ``file`` cannot be written.
    """
    figure = Figure(figsize=(11.5, 5.2), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1.25, 1))
    for row in rows:
        if row.setting["name"] in YARDSTICKS:
            _draw_yardstick(left, right, row)
    shown = [row for row in rows if row.setting["name"] == FLOW and row.value("perplexity") and cost.of(row)]
    for index, label in enumerate(dict.fromkeys(map(line_of, shown))):
        line = sorted((row for row in shown if line_of(row) == label), key=lambda row: float(row.setting["num_steps"]))
        _draw_line(left, right, line, cost, label, index)
    left.set(yscale="log", ylabel=f"perplexity under {scorer}", title="Perplexity")
    right.set(ylabel="unigram entropy of a sample (nats)", title="Entropy: low means repetition")
    for axes in (left, right):
        axes.set_xlabel(cost.label)
        if shown:
            _log_axis(axes)
        axes.grid(alpha=0.25)
    handles = left.get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", ncols=3, frameon=False, handlelength=3.6, fontsize=8)
    write_png(figure, file)


def line_of(row: Row) -> str:
    """What the points of one line have in common, as its label."""
    axes = [name for name in row.setting if name not in ("name", "readout", "reinjection", "num_steps")]
    unusual = [name for name in axes if name in COLUMNS and row.setting[name] != COLUMNS[name].usual]
    others = "".join(f", {COLUMNS[name].title} {row.setting[name]}" for name in unusual)
    return f"{row.setting.get('readout')}, gamma {row.setting.get('reinjection')}{others}"


def _log_axis(axes: Axes) -> None:
    """Costs by factors of 2."""
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_locator(LogLocator(base=2, numticks=8))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:.3g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())


def _draw_yardstick(left: Axes, right: Axes, row: Row) -> None:
    name = str(row.setting["name"])
    color, dashes = YARDSTICKS[name]
    perplexity, entropy = row.value("perplexity"), row.value("entropy_nats")
    if perplexity is not None:
        left.axhline(perplexity, color=color, linestyle=dashes, linewidth=1.3, label=name)
    if entropy is None:
        return
    right.axhline(entropy, color=color, linestyle=dashes, linewidth=1.3)
    if name == HELD_OUT:
        low, high = entropy - ENTROPY_BAND_NATS, entropy + ENTROPY_BAND_NATS
        right.axhspan(low, high, color="#000000", alpha=0.08, linewidth=0)


def _draw_line(left: Axes, right: Axes, line: Sequence[Row], cost: Cost, label: str, index: int) -> None:
    color, marker = SERIES[index % len(SERIES)]
    x = [cost.of(row) or 0.0 for row in line]
    values = [row.value("perplexity") or 0.0 for row in line]
    intervals = [row.interval("perplexity") for row in line]
    whiskers = [
        [max(0.0, value - (i.low if i else value)) for value, i in zip(values, intervals, strict=True)],
        [max(0.0, (i.high if i else value) - value) for value, i in zip(values, intervals, strict=True)],
    ]
    style: dict[str, Any] = {
        "color": color,
        "marker": marker,
        "markersize": 5,
        "linewidth": 1.6,
        "linestyle": DASHES[index // len(SERIES) % len(DASHES)],
    }
    left.errorbar(x, values, yerr=whiskers, capsize=3, label=label, **style)
    right.plot(x, [row.value("entropy_nats") or 0.0 for row in line], **style)
