"""Figures of training and generation as PNG files."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator, ScalarFormatter

from fewstep.evaluation.canvas import SERIES, write_png
from fewstep.evaluation.table import GenerationTable

YARDSTICKS = {
    "held-out text": ("#000000", "-"),
    "language model": ("#009E73", "--"),
    "words shuffled": ("#777777", "-."),
    "unigram draws": ("#999999", ":"),
    "pure noise": ("#CC79A7", (0, (1, 3))),
}
ENTROPY_BAND_NATS = 0.3
"""Samples whose entropy is farther than this from real text's are not compared by perplexity."""


def write_generation_figure(table: GenerationTable, file: str | Path) -> None:
    """Perplexity over the number of steps K (log-log), one line a readout and strength of
    re-injection, and unigram entropy beside it.

    Yardsticks are horizontal lines; whiskers are the 95 % intervals; the band is real text's entropy +- 0.3 nats.
    Raises ``UserError`` where ``file`` cannot be written.
    """
    figure = Figure(figsize=(11, 4.6), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1.25, 1))
    steps = sorted({row.num_steps for row in table.rows if row.num_steps is not None})
    for name, (color, dashes) in YARDSTICKS.items():
        for row in (row for row in table.rows if row.name == name):
            left.axhline(row.perplexity, color=color, linestyle=dashes, linewidth=1.3, label=name)
            right.axhline(row.entropy_nats, color=color, linestyle=dashes, linewidth=1.3)
            if name == "held-out text":
                low, high = row.entropy_nats - ENTROPY_BAND_NATS, row.entropy_nats + ENTROPY_BAND_NATS
                right.axhspan(low, high, color="#000000", alpha=0.08, linewidth=0, label="real text ± 0.3 nats")
    series = list(dict.fromkeys((row.readout, row.reinjection) for row in table.rows if row.readout is not None))
    for (readout, gamma), (color, marker) in zip(series, SERIES, strict=False):
        same = (row for row in table.rows if (row.readout, row.reinjection) == (readout, gamma))
        rows = sorted(same, key=lambda row: row.num_steps or 0)
        ks = [row.num_steps for row in rows]
        values = [row.perplexity for row in rows]
        below = [row.perplexity - row.perplexity_interval.low for row in rows]
        above = [row.perplexity_interval.high - row.perplexity for row in rows]
        style = {"color": color, "marker": marker, "markersize": 6, "linewidth": 1.8}
        whiskers = [[max(0.0, value) for value in side] for side in (below, above)]
        left.errorbar(ks, values, yerr=whiskers, capsize=3, label=f"flow, {readout} readout, gamma {gamma:g}", **style)
        right.plot(ks, [row.entropy_nats for row in rows], **style)
    left.set(yscale="log", ylabel=f"perplexity under {table.scorer}", title="Perplexity")
    right.set(ylabel="unigram entropy of a sample (nats)", title="Entropy: low means repetition")
    for axes in (left, right):
        _step_axis(axes, steps)
        axes.grid(alpha=0.25)
    right.legend(frameon=False, fontsize=9)
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    count = max((row.num_samples for row in table.rows), default=0)
    figure.suptitle(f"{count} samples of {table.block_size} tokens a point", fontsize=11)
    write_png(figure, file)


def _step_axis(axes: Axes, steps: Sequence[int]) -> None:
    axes.set_xscale("log", base=2)
    axes.set_xlabel("steps K")
    axes.xaxis.set_major_locator(FixedLocator(list(steps)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(ScalarFormatter())
