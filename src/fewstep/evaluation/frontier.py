"""The picture of a sweep over temperatures: perplexity against entropy, a line a setting."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fewstep.evaluation.matched import ENTROPY, sweeps_of
from fewstep.evaluation.pictures import DASHES, write_png
from fewstep.evaluation.rows import HELD_OUT, LANGUAGE_MODEL, SHUFFLED, Row, at_usual_temperature, label_of

MARKS = {HELD_OUT: "*", SHUFFLED: "X"}
MODEL_MARKS = (".", "^", "s", "D")
"""Of the points of each model, in the order of the rows."""
NOT_IN_LABELS = ("readout", "noise_scale", "temperature")
NEAR_NATS = 0.4
"""Entropies farther from real text's are off the picture: a collapsed setting would squeeze all others."""
PANEL_INCHES, LEGEND_INCHES, HEIGHT_INCHES = 4.6, 2.2, 4.4


def write_frontier(rows: Sequence[Row], scorer: str, file: Path) -> None:
    """Perplexity (log) against entropy into the PNG ``file``, a panel a readout; nothing where there was no sweep.

    A line joins a setting's temperatures: its colour is the number of steps, its dash the re-injection, its marks the
    model, a ring the usual temperature. Real text, its entropy and its words shuffled are marked, and the language
    model's line is black. Raises ``UserError`` where ``file`` cannot be written.
    """
    sweeps = sweeps_of(rows)
    settings = [sweep[0].setting for sweep in sweeps if "readout" in sweep[0].setting]
    readouts = list(dict.fromkeys(str(setting["readout"]) for setting in settings))
    if not readouts:
        return
    steps = sorted({float(setting["num_steps"]) for setting in settings})
    rules = list(dict.fromkeys(setting["reinjection"] for setting in settings))
    names = list(dict.fromkeys(setting["name"] for setting in settings))
    figure = Figure(figsize=(PANEL_INCHES * len(readouts) + LEGEND_INCHES, HEIGHT_INCHES), layout="constrained")
    for panel, readout in zip(figure.subplots(1, len(readouts), squeeze=False, sharey=True)[0], readouts, strict=True):
        for sweep in sweeps:
            setting = sweep[0].setting
            if setting.get("readout") == readout:
                place = steps.index(float(setting["num_steps"])) / max(1, len(steps) - 1)
                dash = DASHES[rules.index(setting["reinjection"]) % len(DASHES)]
                label = label_of({name: setting[name] for name in setting if name not in NOT_IN_LABELS})
                mark = MODEL_MARKS[names.index(setting["name"]) % len(MODEL_MARKS)]
                _draw(panel, sweep, label, colormaps["viridis"](0.92 * place), dash, mark)
            elif setting["name"] == LANGUAGE_MODEL:
                _draw(panel, sweep, LANGUAGE_MODEL, "#000000", "-", ".")
        _mark(panel, rows)
        panel.set(title=f"{readout} readout", xlabel="unigram entropy (nats)", yscale="log")
        panel.grid(alpha=0.25)
    real = next((row.value(ENTROPY) for row in rows if row.setting["name"] == HELD_OUT), None)
    if real is not None:
        drawn = [row for row in rows if row.setting["name"] in MARKS] + [row for sweep in sweeps for row in sweep]
        near = [row.value("perplexity") for row in drawn if abs((row.value(ENTROPY) or 0.0) - real) <= NEAR_NATS]
        known = [value for value in near if value is not None] or [1.0]
        for panel in figure.axes:
            panel.set(xlim=(real - NEAR_NATS, real + NEAR_NATS / 2), ylim=(0.8 * min(known), 1.25 * max(known)))
    figure.axes[0].set_ylabel(f"perplexity under {scorer}")
    handles = figure.axes[0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside right upper", frameon=False, fontsize=8, handlelength=3.6)
    write_png(figure, file)


def _draw(panel: Axes, sweep: Sequence[Row], label: str, color: object, dash: str, mark: str) -> None:
    """One setting through its temperatures, the usual one ringed."""
    x, y = ([row.value(name) or 0.0 for row in sweep] for name in (ENTROPY, "perplexity"))
    usual = [at_usual_temperature(row.setting) for row in sweep]
    panel.plot(x, y, label=label, color=color, linestyle=dash, linewidth=1.6, marker=mark, markersize=5)
    rings = [[value for value, ringed in zip(values, usual, strict=True) if ringed] for values in (x, y)]
    panel.plot(*rings, color=color, linestyle="", marker="o", markersize=7, fillstyle="none")


def _mark(panel: Axes, rows: Sequence[Row]) -> None:
    """Real text and its words shuffled, and a vertical line at real text's entropy."""
    for row in rows:
        name, entropy, perplexity = str(row.setting["name"]), row.value(ENTROPY), row.value("perplexity")
        if name in MARKS and entropy is not None and perplexity is not None:
            panel.plot(
                [entropy], [perplexity], label=name, color="#D55E00", linestyle="", marker=MARKS[name], markersize=11
            )
            if name == HELD_OUT:
                panel.axvline(entropy, color="#D55E00", linewidth=1, linestyle=":")
