"""Pictures of a sweep: what perplexity costs, and what stands beside it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

from fewstep.evaluation.canvas import SERIES, write_png
from fewstep.evaluation.figures import ENTROPY_BAND_NATS, YARDSTICKS
from fewstep.evaluation.pictures import DASHES
from fewstep.evaluation.sweep_row import AXES, FLOW, HELD_OUT, SweepRow


@dataclass(frozen=True)
class Cost:
    """What a picture has on its x axis: ``label``, and ``of`` a row."""

    label: str
    of: Callable[[SweepRow], float | None]


NFE = Cost("NFE: forward passes a sample, the readout's included", lambda row: row.nfe)
SECONDS = Cost(
    "seconds for 1,000 tokens",
    lambda row: None if row.tokens_per_second is None else 1000 / row.tokens_per_second,
)


def write_pareto_figure(rows: Sequence[SweepRow], cost: Cost, file: str | Path, *, scorer: str) -> None:
    """Perplexity over ``cost`` (log-log) and unigram entropy beside it, one line a setting but for its
    number of steps, which are the points.

    Whiskers are 95 % intervals, yardsticks horizontal lines, and the band is real text's entropy +- 0.3 nats: outside
    it perplexities do not compare. ``scorer`` is the name on the axis. Rows without a perplexity or a cost are left
    out. Raises ``UserError`` where ``file`` cannot be written.
    """
    figure = Figure(figsize=(11.5, 5.2), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1.25, 1))
    for row in rows:
        if row.setting.name in YARDSTICKS:
            _draw_yardstick(left, right, row)
    shown = [row for row in rows if row.setting.name == FLOW and row.perplexity is not None and cost.of(row)]
    for index, label in enumerate(dict.fromkeys(map(line_of, shown))):
        line = sorted((row for row in shown if line_of(row) == label), key=lambda row: row.setting.num_steps or 0)
        _draw_line(left, right, line, cost, label, index)
    left.set(yscale="log", ylabel=f"perplexity under {scorer}", title="Perplexity")
    right.set(ylabel="unigram entropy of a sample (nats)", title="Entropy: low means repetition")
    for axes in (left, right):
        axes.set_xlabel(cost.label)
        if shown:
            _log_axis(axes)
        axes.grid(alpha=0.25)
    figure.legend(
        *left.get_legend_handles_labels(),
        loc="outside lower center",
        ncols=3,
        frameon=False,
        handlelength=3.6,
        fontsize=8,
    )
    write_png(figure, file)


def line_of(row: SweepRow) -> str:
    """What the points of one line have in common, as its label."""
    setting = row.setting
    cold = "" if setting.noise_temperature in (None, 1.0) else f", noise x {setting.noise_temperature:g}"
    others = "".join(f", {axis.column} {shown}" for axis in AXES if (shown := axis.unusual(setting)))
    return f"{setting.readout}, gamma {setting.reinjection}{cold}{others}"


def _log_axis(axes: Axes) -> None:
    """Costs by factors of 2, written plainly."""
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_locator(LogLocator(base=2, numticks=8))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:.3g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())


def _draw_yardstick(left: Axes, right: Axes, row: SweepRow) -> None:
    color, dashes = YARDSTICKS[row.setting.name]
    if row.perplexity is not None:
        left.axhline(row.perplexity, color=color, linestyle=dashes, linewidth=1.3, label=row.setting.name)
    right.axhline(row.entropy_nats, color=color, linestyle=dashes, linewidth=1.3)
    if row.setting.name == HELD_OUT:
        low, high = row.entropy_nats - ENTROPY_BAND_NATS, row.entropy_nats + ENTROPY_BAND_NATS
        right.axhspan(low, high, color="#000000", alpha=0.08, linewidth=0)


def _draw_line(left: Axes, right: Axes, line: Sequence[SweepRow], cost: Cost, label: str, index: int) -> None:
    color, marker = SERIES[index % len(SERIES)]
    x = [cost.of(row) or 0.0 for row in line]
    values = [row.perplexity or 0.0 for row in line]
    intervals = [row.perplexity_interval for row in line]
    whiskers = [
        [max(0.0, value - (one.low if one else value)) for value, one in zip(values, intervals, strict=True)],
        [max(0.0, (one.high if one else value) - value) for value, one in zip(values, intervals, strict=True)],
    ]
    style: dict[str, Any] = {
        "color": color,
        "marker": marker,
        "markersize": 5,
        "linewidth": 1.6,
        "linestyle": DASHES[index // len(SERIES) % len(DASHES)],
    }
    left.errorbar(x, values, yerr=whiskers, capsize=3, label=label, **style)
    right.plot(x, [row.entropy_nats for row in line], **style)
