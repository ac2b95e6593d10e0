"""Objectives side by side: the gain over the plain flow, the table, and pictures of one comparison or of several."""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from fewstep.diagnostics.result import Picture, Series
from fewstep.errors import UserError
from fewstep.evaluation.charts import STEPS, row_series
from fewstep.evaluation.pictures import write_pictures
from fewstep.evaluation.rows import COLUMNS as TEXT_COLUMNS
from fewstep.evaluation.rows import HELD_OUT, Column, Key, Row, RowFile, Value, at_usual_temperature, key_of
from fewstep.evaluation.scorers import corpus_perplexity
from fewstep.evaluation.sweep import Statistic
from fewstep.lab.compare.runs import FLOW
from fewstep.lab.images.study import YARDSTICK
from fewstep.metrics.intervals import Interval, mean_interval

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


def quality_of(rows: Sequence[Row]) -> str:
    """The value that ``rows`` are judged by. Raises ``UserError`` where none has one."""
    for name in QUALITIES:
        if any(row.value(name) is not None for row in rows):
            return name
    raise UserError("no finished comparison: no row was scored; let fewstep compare come to its end first")


def gain_over(row: Row, flow: Row, quality: str) -> Value:
    """The flow's quality over the row's, and its 95 % interval.

    Sample i of both comes of the same noise, so a bootstrap resamples pairs: what noise they share does not widen the
    interval. Of image seeds there are too few for that: there it is Student's for the logarithm of a seed's ratio, None
    for one seed.
    """
    if quality in row.per_sample:

        def ratio(pairs: Tensor) -> Tensor:
            return corpus_perplexity(pairs[..., :2]) / corpus_perplexity(pairs[..., 2:])

        columns = [torch.tensor(each.per_sample[quality], dtype=torch.float64) for each in (flow, row)]
        return Statistic(torch.cat(columns, 1), ratio).value(1, 1000)
    seeds = zip(flow.values[quality].by_seed, row.values[quality].by_seed, strict=True)
    logarithms = mean_interval([math.log(theirs / own) for theirs, own in seeds if theirs and own])
    interval = None if logarithms is None else Interval(math.exp(logarithms.low), math.exp(logarithms.high))
    return Value((flow.value(quality) or math.nan) / (row.value(quality) or math.nan), interval)


def with_gains(rows: Sequence[Row]) -> list[Row]:
    """The rows, each with its gain over the plain flow's row of the same setting, where both were measured."""
    quality = quality_of(rows)
    flows = {_place(row): row for row in rows if row.setting["name"] == FLOW}
    collected = []
    for row in rows:
        flow = flows.get(_place(row)) if "num_steps" in row.setting and row.setting["name"] != FLOW else None
        if flow is not None and row.value(quality) and flow.value(quality):
            row = replace(row, values={**row.values, "gain": gain_over(row, flow, quality)})
        collected.append(row)
    return collected


def _place(row: Row) -> Key:
    return key_of({axis: value for axis, value in row.setting.items() if axis != "name"})


def write_contrast(comparisons: Sequence[Path], file: Path) -> None:
    """Quality over that of real data over K, a panel a finished comparison (its file of rows) and readout.

    Raises ``UserError`` without rows or without a quality of real data, and where ``file`` cannot be written.
    """
    panels = []
    for comparison in comparisons:
        rows = RowFile(comparison).read()
        try:
            quality = quality_of(rows)
        except UserError as error:
            raise UserError(f"{comparison}: {error}") from None
        real = next((row.value(quality) for row in rows if row.setting["name"] in (HELD_OUT, YARDSTICK)), None)
        if real is None:
            raise UserError(f"{comparison}: the real data have no quality to compare with: nothing of them was scored")
        by_readout: dict[str, list[Row]] = {}
        for row in rows:
            if "num_steps" in row.setting and row.value(quality) is not None and at_usual_temperature(row.setting):
                by_readout.setdefault(str(row.setting.get("readout", "")), []).append(row)
        panels += [_panel(readout, shown, quality, real) for readout, shown in by_readout.items()]
    # All panels have the same lines, so that a line looks alike in each; one that a panel lacks has no point there.
    labels = list(dict.fromkeys(series.label for panel in panels for series in panel.series))
    padded = []
    for panel in panels:
        known = {series.label: series for series in panel.series}
        nothing = panel.series[-1].x[:1], (math.nan,)
        padded.append(replace(panel, series=tuple(known.get(label) or Series(label, *nothing) for label in labels)))
    write_pictures(padded, file)


def _panel(readout: str, rows: Sequence[Row], quality: str, real: float) -> Picture:
    """A line an objective and rule, with 95 % intervals, and one for real data, at 1."""
    lines: dict[str, list[Row]] = {}
    for row in rows:
        lines.setdefault(f"{row.setting['name']}, gamma {row.setting['reinjection']}", []).append(row)
    series = []
    for label, line in lines.items():
        line.sort(key=lambda row: int(row.setting["num_steps"]))
        whole = row_series(label, line, STEPS, quality)
        over_real = (tuple(value / real for value in part or ()) for part in (whole.y, whole.low, whole.high))
        series.append(Series(label, whole.x, *over_real))
    places = [x for each in series for x in each.x]
    series.append(Series("real data", (min(places), max(places)), (1.0, 1.0)))
    title, kind = (f"text, {readout} readout", "text") if readout else ("images", "images")
    y_label = f"{QUALITIES[quality]} / that of real {kind}"
    return Picture(title, "steps K", y_label, tuple(series), log_x=True, log_y=True)
