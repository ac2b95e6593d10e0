"""Objectives side by side: the gain over the plain flow, the table, and pictures of one comparison or of several."""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator, ScalarFormatter
from torch import Tensor

from fewstep.errors import UserError
from fewstep.evaluation.pictures import write_png
from fewstep.evaluation.rows import COLUMNS as TEXT_COLUMNS
from fewstep.evaluation.rows import HELD_OUT, Column, Row, RowFile, Value
from fewstep.evaluation.scorers import corpus_perplexity
from fewstep.lab.compare.runs import FLOW
from fewstep.lab.images.study import YARDSTICK
from fewstep.metrics.intervals import Interval, bootstrap_interval, mean_interval

QUALITIES = {"perplexity": "perplexity", "latents": "Frechet distance"}
"""The value that text, and that images are judged by, lower is better, and its name."""
COLUMNS = {
    "name": Column("objective"),
    **{name: column for name, column in TEXT_COLUMNS.items() if name not in ("name", "num_samples")},
    "latents": Column("FD latents", ".3g", interval=True),
    "gain": Column("beats the flow by", ".2f", interval=True),
    "passes": Column("passes", ",.0f"),
    "training_seconds": Column("training s", ",.0f"),
    "num_samples": TEXT_COLUMNS["num_samples"],
}
CAPTION = (
    "Passes: forward passes an example of a batch in the objective's own training, a backward pass counted as two; "
    "training s: its wall time with start and validation; beats the flow by: the plain flow's figure at the same "
    "setting over this one, with a 95 % interval of a paired bootstrap."
)
# Okabe and Ito's palette; a marker of its own for each objective says the same again.
COLORS = ("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C6D31", "#777777", "#AA0000")
MARKERS = "os^DvPX<>*"
DASHES = {"0": "-", "1": "--"}
"""Deterministic steps and full re-injection; other rules are dotted."""


def quality_of(rows: Sequence[Row]) -> str:
    """The value that ``rows`` are judged by. Raises ``UserError`` where none has one."""
    for name in QUALITIES:
        if any(row.value(name) is not None for row in rows):
            return name
    raise UserError("no finished comparison: no row was scored; let fewstep compare come to its end first")


def real_value(rows: Sequence[Row]) -> float:
    """The quality of real data. Raises ``UserError`` without it."""
    value = next((row.value(quality_of(rows)) for row in rows if row.setting["name"] in (HELD_OUT, YARDSTICK)), None)
    if value is None:
        raise UserError("the real data have no quality to compare with: nothing of them was scored")
    return value


def gain_over(row: Row, flow: Row, quality: str, *, num_resamples: int = 1000) -> Value:
    """The flow's quality over the row's, and its 95 % interval.

    Sample i of both comes of the same noise, so a bootstrap resamples pairs: what noise they share does not widen the
    interval. Of image seeds there are too few for that: there it is Student's for the logarithm of a seed's ratio, None
    for one seed. Raises ``ValueError`` for different numbers of samples.
    """
    if quality in row.per_sample:
        own, theirs = (torch.tensor(each.per_sample[quality], dtype=torch.float64) for each in (row, flow))
        if own.shape != theirs.shape:
            raise ValueError(f"{len(own)} samples against {len(theirs)} of the flow: expected as many")

        def ratio(resamples: Tensor) -> Tensor:
            return corpus_perplexity(resamples[:, :, 0]) / corpus_perplexity(resamples[:, :, 1])

        pairs, noise = torch.stack([theirs, own], 1), torch.Generator().manual_seed(0)
        return Value(float(ratio(pairs[None])[0]), bootstrap_interval(pairs, ratio, num_resamples, noise, batched=True))
    seeds = zip(flow.values[quality].by_seed, row.values[quality].by_seed, strict=True)
    logarithms = mean_interval([math.log(theirs / own) for theirs, own in seeds if theirs and own])
    interval = None if logarithms is None else Interval(math.exp(logarithms.low), math.exp(logarithms.high))
    return Value((flow.value(quality) or math.nan) / (row.value(quality) or math.nan), interval)


def with_gains(rows: Sequence[Row]) -> list[Row]:
    """The rows, each with its gain over the plain flow's row of the same setting, where both were measured."""
    quality = quality_of(rows)
    flows = {_setting(row): row for row in rows if row.setting["name"] == FLOW}
    collected = []
    for row in rows:
        flow = flows.get(_setting(row)) if "num_steps" in row.setting and row.setting["name"] != FLOW else None
        if flow is not None and row.value(quality) and flow.value(quality):
            row = replace(row, values={**row.values, "gain": gain_over(row, flow, quality)})
        collected.append(row)
    return collected


def _setting(row: Row) -> tuple[object, ...]:
    return tuple(sorted((axis, value) for axis, value in row.setting.items() if axis != "name"))


def write_figure(rows: Sequence[Row], file: Path) -> None:
    """Quality over K (log-log), a panel a readout, a line an objective and rule: solid at 0, dashed at 1.

    Whiskers are 95 % intervals, the horizontal line is real data. Raises ``UserError`` where ``file`` cannot be
    written.
    """
    shown = _shown(rows)
    readouts = list(dict.fromkeys(row.setting.get("readout") for row in shown)) or [None]
    panels = [[row for row in shown if row.setting.get("readout") == readout] for readout in readouts]
    titles = ["images" if readout is None else f"text, {readout} readout" for readout in readouts]
    label = f"{QUALITIES[quality_of(rows)]} (lower is better)"
    _write(panels, titles, [label, *[""] * (len(panels) - 1)], [real_value(rows)] * len(panels), file)


def write_contrast(folders: Sequence[Path], rows_name: str, file: Path) -> None:
    """Finished comparisons side by side: quality over that of real data, which is the line at 1.

    Of several readouts the first is drawn, so that the panels differ in the data alone. Raises ``UserError`` for a
    folder without rows, and where ``file`` cannot be written.
    """
    panels, titles, labels = [], [], []
    for folder in folders:
        rows = RowFile(folder / rows_name).read()
        try:
            quality, unit, shown = quality_of(rows), real_value(rows), _shown(rows)
        except UserError as error:
            raise UserError(f"{folder}: {error}") from None
        first = [row for row in shown if row.setting.get("readout") == shown[0].setting.get("readout")]
        panels.append([_scaled(row, quality, unit) for row in first])
        kind = "text" if quality == "perplexity" else "images"
        titles.append(kind)
        labels.append(f"{QUALITIES[quality]} / that of real {kind}")
    _write(panels, titles, labels, [1.0] * len(panels), file)


def _scaled(row: Row, quality: str, unit: float) -> Row:
    value, interval = row.value(quality) or 0.0, row.interval(quality)
    bounds = None if interval is None else Interval(interval.low / unit, interval.high / unit)
    return replace(row, values={quality: Value(value / unit, bounds)})


def _shown(rows: Sequence[Row]) -> list[Row]:
    quality = quality_of(rows)
    return [row for row in rows if "num_steps" in row.setting and row.value(quality) is not None]


def _write(
    panels: Sequence[Sequence[Row]], titles: Sequence[str], labels: Sequence[str], real: Sequence[float], file: Path
) -> None:
    figure = Figure(figsize=(6 * len(panels) + 2.8, 5), layout="constrained")
    names = list(dict.fromkeys(row.setting["name"] for rows in panels for row in rows))
    every = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
    for axes, rows, title, label, level in zip(every, panels, titles, labels, real, strict=True):
        _draw(axes, rows, names)
        axes.axhline(level, color="#000000", linewidth=1.2, linestyle="-.", label="real data")
        axes.set(title=title, ylabel=label, xlabel="steps K", yscale="log")
        axes.tick_params(labelleft=True)
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_locator(FixedLocator(sorted({float(row.setting["num_steps"]) for row in rows})))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(ScalarFormatter())
        axes.grid(alpha=0.25)
    collected = {
        label: handle for axes in every for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    figure.legend(
        collected.values(), collected.keys(), loc="outside right upper", frameon=False, fontsize=8, handlelength=3.6
    )
    write_png(figure, file)


def _draw(axes: Axes, rows: Sequence[Row], names: Sequence[object]) -> None:
    quality = quality_of(rows)
    for name, rule in dict.fromkeys((row.setting["name"], row.setting["reinjection"]) for row in rows):
        line = [row for row in rows if (row.setting["name"], row.setting["reinjection"]) == (name, rule)]
        line.sort(key=lambda row: row.setting["num_steps"])
        values = [row.value(quality) or 0.0 for row in line]
        bounds = [row.interval(quality) or Interval(value, value) for row, value in zip(line, values, strict=True)]
        low = [max(0.0, value - bound.low) for value, bound in zip(values, bounds, strict=True)]
        high = [max(0.0, bound.high - value) for value, bound in zip(values, bounds, strict=True)]
        style = names.index(name)
        axes.errorbar(
            [row.setting["num_steps"] for row in line],
            values,
            yerr=[low, high],
            label=f"{name}, gamma {rule}",
            color=COLORS[style % len(COLORS)],
            marker=MARKERS[style % len(MARKERS)],
            markersize=5,
            linewidth=1.5,
            capsize=2,
            linestyle=DASHES.get(str(rule), ":"),
        )
