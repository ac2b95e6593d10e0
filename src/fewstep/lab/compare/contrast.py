"""Objectives side by side: the table, its picture, and the contrast of text and images."""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator, ScalarFormatter
from torch import Tensor

from fewstep.errors import UserError
from fewstep.evaluation.canvas import write_png
from fewstep.evaluation.columns import aligned_columns, markdown_table, rounded
from fewstep.lab.compare.comparison import FLOW, Compared, Quality
from fewstep.metrics.intervals import Interval, bootstrap_interval, mean_interval

RULED_OUT = "ruled out"
HEAD = ("objective", "readout", "gamma", "K")
TAIL = ("late flips", "stiffness peak", "passes", "training s")

# Okabe and Ito's palette; a marker of its own for each objective says the same again.
STYLES = (
    ("#000000", "o"),
    ("#0072B2", "s"),
    ("#D55E00", "^"),
    ("#009E73", "D"),
    ("#CC79A7", "v"),
    ("#E69F00", "P"),
    ("#56B4E9", "X"),
    ("#8C6D31", "<"),
    ("#777777", ">"),
    ("#AA0000", "*"),
)
DASHES = {0.0: "-", 1.0: "--"}
"""Deterministic steps and full re-injection; other strengths are dotted."""


def gain_over(
    row: Compared, flow: Compared, quality: Quality, *, num_resamples: int = 1000
) -> tuple[float, Interval | None]:
    """The flow's quality over the row's, and its 95 % interval.

    Sample i of both comes of the same noise, so a bootstrap resamples pairs: what noise they share does not widen the
    interval. Of seeds there are too few for that: there it is Student's for the logarithm of a seed's ratio, None for
    one seed. This project's definition. Raises ``ValueError`` for different numbers of samples.
    """
    if len(row.samples) != len(flow.samples):
        raise ValueError(f"{len(row.samples)} samples against {len(flow.samples)} of the flow: expected as many")
    pairs = torch.tensor([flow.samples, row.samples], dtype=torch.float64).transpose(0, 1)

    def ratio(resamples: Tensor) -> Tensor:
        return quality.of(resamples[:, :, 0]) / quality.of(resamples[:, :, 1])

    value = float(ratio(pairs[None])[0])
    if quality.of_seeds:
        logarithms = mean_interval([math.log(float(ratio(pair[None, None])[0])) for pair in pairs])
        return value, None if logarithms is None else Interval(math.exp(logarithms.low), math.exp(logarithms.high))
    noise = torch.Generator().manual_seed(0)
    return value, bootstrap_interval(pairs, ratio, num_resamples, noise, batched=True)


def with_gains(rows: Sequence[Compared], quality: Quality) -> tuple[Compared, ...]:
    """The rows, each with its gain over the plain flow's row of the same setting, where there are both and samples."""
    flows = {row.setting: row for row in rows if row.objective == FLOW and row.samples}
    found = []
    for row in rows:
        flow = flows.get(row.setting)
        if flow is not None and row.samples and row.objective != FLOW:
            gain, interval = gain_over(row, flow, quality)
            row = replace(row, gain=gain, gain_interval=interval)
        found.append(row)
    return tuple(found)


@dataclass(frozen=True)
class Comparison:
    """All rows of one model's latents. ``kind`` is "text" or "images", ``quality`` the name of what rows are judged by,
    ``real`` its value for real data, and ``caption`` tells what the numbers are."""

    kind: str
    quality: str
    real: float
    caption: str
    rows: tuple[Compared, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, fit for JSON, without the numbers of single samples."""
        rows = [replace(row, samples=()).to_dict() for row in self.rows]
        return {**{item.name: getattr(self, item.name) for item in fields(self)}, "rows": rows}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Comparison":
        """The inverse of :meth:`to_dict`, also after a way through JSON. Raises ``KeyError`` or ``TypeError``."""
        known = {name: value for name, value in values.items() if name != "provenance"}  # of the file, not the figures
        return cls(**{**known, "rows": tuple(map(Compared.from_dict, values["rows"]))})


def read_comparison(file: Path) -> Comparison:
    """What ``fewstep compare`` left of one. Raises ``UserError`` where that is missing or broken."""
    try:
        return Comparison.from_dict(json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"{file} holds no finished comparison: let fewstep compare come to its end first") from None


def table_lines(comparison: Comparison) -> list[tuple[str, ...]]:
    """Heading and rows of the table as strings."""
    names = tuple(dict.fromkeys(name for row in comparison.rows for name, _ in row.others))
    heading = (*HEAD, comparison.quality, "95 % interval", "beats the flow by", *names, *TAIL)
    return [heading, *(_line(row, names) for row in comparison.rows)]


def notes(comparison: Comparison) -> list[str]:
    """Why settings are ruled out, a sentence an objective and reason."""
    found: dict[tuple[str, str], dict[str, None]] = {}
    for row in comparison.rows:
        if row.ruled_out is not None:
            settings = found.setdefault((row.objective, row.ruled_out), {})
            settings[f"K = {row.num_steps} with gamma {row.reinjection:g}"] = None
    return [f"{name}, {', '.join(where)}, is ruled out: {why}." for (name, why), where in found.items()]


def comparison_text(comparison: Comparison) -> str:
    """Aligned columns for a terminal, with caption and notes below."""
    return "\n".join([aligned_columns(table_lines(comparison), (0, 1)), comparison.caption, *notes(comparison)])


def comparison_markdown(comparison: Comparison) -> str:
    """A Markdown table with caption and notes below."""
    below = [comparison.caption, *(f"- {note}" for note in notes(comparison))]
    return markdown_table(table_lines(comparison), "\n\n".join(below))


def write_comparison_figure(comparison: Comparison, file: str | Path) -> None:
    """Quality over K (log-log), a panel a readout, a line an objective and strength: solid at 0, dashed at 1.

    Whiskers are 95 % intervals, the horizontal line is real data. Raises ``UserError`` where ``file`` cannot be
    written.
    """
    readouts = list(dict.fromkeys(row.readout for row in shown_rows(comparison))) or [None]
    figure = Figure(figsize=(6.2 * len(readouts) + 2.8, 5), layout="constrained")
    panels = figure.subplots(1, len(readouts), squeeze=False, sharey=True)[0]
    styles = styles_of([comparison])
    for axes, readout in zip(panels, readouts, strict=True):
        rows = [row for row in shown_rows(comparison) if row.readout == readout]
        draw_panel(axes, rows, comparison.real, styles, unit=1.0)
        axes.set_title(f"{comparison.kind}, {readout} readout" if readout else comparison.kind)
    panels[0].set_ylabel(f"{comparison.quality} (lower is better)")
    _legend(figure, panels)
    write_png(figure, file)


def write_contrast_figure(comparisons: Sequence[Comparison], file: str | Path) -> None:
    """Panels side by side: quality over that of real data, which is the line at 1, under the same objectives.

    Of several readouts the first is drawn, so that the panels differ in the data alone. Raises ``UserError`` where
    ``file`` cannot be written.
    """
    figure = Figure(figsize=(5.6 * len(comparisons) + 2.8, 5), layout="constrained")
    panels = figure.subplots(1, len(comparisons), squeeze=False, sharey=True)[0]
    styles = styles_of(comparisons)
    for axes, comparison in zip(panels, comparisons, strict=True):
        rows = shown_rows(comparison)
        rows = [row for row in rows if row.readout == rows[0].readout]
        draw_panel(axes, rows, comparison.real, styles, unit=comparison.real)
        axes.set(title=comparison.kind, ylabel=f"{comparison.quality} / that of real {comparison.kind}")
        axes.tick_params(labelleft=True)
    _legend(figure, panels)
    write_png(figure, file)


def shown_rows(comparison: Comparison) -> list[Compared]:
    """The rows that have a place in a picture: those of an objective, that were measured."""
    return [row for row in comparison.rows if row.num_steps is not None and row.quality is not None]


def styles_of(comparisons: Sequence[Comparison]) -> dict[str, tuple[str, str]]:
    """Colour and marker of each objective, the same in all pictures of these comparisons."""
    names = dict.fromkeys(row.objective for one in comparisons for row in one.rows if row.num_steps is not None)
    return {name: STYLES[index % len(STYLES)] for index, name in enumerate(names)}


def draw_panel(
    axes: Axes, rows: Sequence[Compared], real: float, styles: dict[str, tuple[str, str]], *, unit: float
) -> None:
    """Lines of ``rows`` and the level of ``real`` data, all divided by ``unit``."""
    for name, gamma in dict.fromkeys((row.objective, row.reinjection) for row in rows):
        line = sorted((row for row in rows if (row.objective, row.reinjection) == (name, gamma)), key=_steps)
        color, marker = styles[name]
        values = [(row.quality or 0.0) / unit for row in line]
        axes.errorbar(
            [_steps(row) for row in line],
            values,
            yerr=[_whiskers(line, values, unit, side) for side in (-1, 1)],
            label=f"{name}, gamma {gamma:g}",
            color=color,
            marker=marker,
            markersize=5,
            linewidth=1.5,
            capsize=2,
            linestyle=DASHES.get(gamma or 0.0, ":"),
        )
    axes.axhline(real / unit, color="#000000", linewidth=1.2, linestyle="-.", label="real data")
    axes.set_yscale("log")
    axes.set_xscale("log", base=2)
    axes.set_xlabel("steps K")
    axes.xaxis.set_major_locator(FixedLocator(sorted({_steps(row) for row in rows})))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.grid(alpha=0.25)


def _steps(row: Compared) -> int:
    return row.num_steps or 0


def _whiskers(line: Sequence[Compared], values: Sequence[float], unit: float, side: int) -> list[float]:
    ends = []
    for row, value in zip(line, values, strict=True):
        one = row.quality_interval
        end = value if one is None else (one.low if side < 0 else one.high) / unit
        ends.append(max(0.0, side * (end - value)))
    return ends


def _legend(figure: Figure, panels: Sequence[Axes]) -> None:
    found = {label: handle for axes in panels for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(found.values(), found.keys(), loc="outside right upper", frameon=False, fontsize=8, handlelength=3.6)


def _line(row: Compared, names: Sequence[str]) -> tuple[str, ...]:
    others = dict(row.others)
    return (
        row.objective,
        row.readout or "",
        _shown(row.reinjection, "g"),
        _shown(row.num_steps, "d"),
        RULED_OUT if row.ruled_out is not None else _three_digits(row.quality),
        _range(row.quality_interval, _three_digits),
        "" if row.gain is None else _gain(row),
        *(others.get(name, "") for name in names),
        _shown(row.late_flip_rate, ".3f"),
        _three_digits(row.stiffness_peak),
        _shown(row.passes, ",.0f"),
        _shown(row.seconds, ",.0f"),
    )


def _gain(row: Compared) -> str:
    if row.gain is None:
        return ""
    interval = _range(row.gain_interval, lambda x: f"{x:.2f}")
    return f"{row.gain:.2f} ({interval})" if interval else f"{row.gain:.2f}"


def _range(interval: Interval | None, shown: Callable[[float], str]) -> str:
    return "" if interval is None else f"{shown(interval.low)} - {shown(interval.high)}"


def _three_digits(value: float | None) -> str:
    return rounded(value) if value is None or value >= 10 else f"{value:.3g}"


def _shown(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)
