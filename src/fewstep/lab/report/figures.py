"""Figures of a run by their names, as rules and tables read them, and how they are written."""

from collections.abc import Iterable
from math import inf

import numpy as np

from fewstep.diagnostics.result import Estimate
from fewstep.evaluation.charts import ENTROPY_BAND_NATS
from fewstep.evaluation.measurements import FEW_STEPS, HALF_WAY
from fewstep.evaluation.rows import COLUMNS, FLOW, HELD_OUT, READ_BACK, Row, label_of
from fewstep.lab.report.run import Run

PARALLEL, HEAD = "parallel", "head"
NEAR = 0.15
"""A state farther than this from :data:`HALF_WAY` says nothing about it."""
STILL_FALLING = 0.1
"""Perplexity is still falling where the last more steps lower it by at least this share, beyond the intervals."""
READ_WELL = 1.5
"""Real text that is read back from its own latents is text if it has at most this many times its perplexity."""
NOTHING = "–"
OWN_SCORER = "RunScorer"
"""The class that the protocol names where a run's own language model scored."""

Figure = float | str
Figures = dict[str, Figure | None]


def percent(share: float) -> str:
    """A share as per cent: one decimal under 10 % and over 90 %, two where one would say none or all."""
    value = 100 * share
    if 0 < abs(value) < 0.05 or 99.95 <= value < 100:
        return f"{value:.2f} %"
    digits = f"{value:.1f}" if abs(value) < 10 or 90 < value < 100 else f"{value:.0f}"
    return f"{digits.removesuffix('.0')} %"


def rounded(value: float) -> str:
    """Three digits, thousands separated by commas; digits before the point are never rounded away."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    text = f"{value:.3g}"
    return f"{value:.1e}" if "e" in text else text


def estimate_text(estimate: Estimate) -> str:
    """Value and interval."""
    if estimate.value is None:
        return "undetermined"
    interval = estimate.interval
    return rounded(estimate.value) + (f" ({rounded(interval.low)} to {rounded(interval.high)})" if interval else "")


def figures_of(run: Run) -> dict[str, Figure]:
    """Every determined estimate by its row's name, and what follows from estimates, curves and scores."""
    logged = [stage.last["val/token_accuracy"] for stage in run.stages if "val/token_accuracy" in stage.last]
    figures: Figures = {"noise_accuracy_at_0": logged[0]} if logged else {}
    for row in (row for result in run.results.values() for row in result.rows):
        if row.estimate.value is not None:
            figures[row.name] = row.estimate.value
    figures |= _readout_figures(figures, run.kind) | _trajectory_figures(run) | _row_figures(run)
    return {name: value for name, value in figures.items() if value is not None}


def _readout_figures(values: Figures, kind: str) -> Figures:
    """Sharpness at boundaries over at data, and distances of generated latents over those of data."""
    boundary, data = ("dabi", "dabi_data") if kind == "text" else ("dabi_segment", "dabi_data_segment")

    def ratio(above: str, below: str) -> float | None:
        over, under = values.get(above), values.get(below)
        return over / under if isinstance(over, float) and isinstance(under, float) and under else None

    return {
        "sharpness": ratio(boundary, data),
        "sharpness_at": values.get(boundary),
        "sharpness_at_data": values.get(data),
        "sharpness_share": values.get(f"{boundary}_fraction"),
        "generated_over_data": ratio("boundary_distance_generated_p50", "boundary_distance_p50"),
    }


def _trajectory_figures(run: Run) -> Figures:
    """Decidedness half-way, stiffness before the last step, tube mass and flips at the last step."""
    late, decided, tube, stiff = map(run.results.get, ("late_flip_rate", "decidedness", "tube", "stiffness"))
    figures: Figures = {"late_flip_steps": late.facts.get("num_predictions") if late else None}
    states = decided.curves.get("decidedness") if decided else None
    if states and states.x:
        time, value = min(zip(states.x, states.y, strict=True), key=lambda point: abs(point[0] - HALF_WAY))
        if abs(time - HALF_WAY) <= NEAR:
            figures |= {"decided_half_way": value, "half_way": time}
    if tube and states and states.x and "mass" in tube.curves:
        mass, times, start = tube.curves["mass"], tube.facts.get("times"), states.x[-1]
        if isinstance(times, list) and len(times) == len(mass.x) and min(times) <= start <= max(times):
            order = np.argsort(times)
            reach, scale = (np.interp(start, np.take(times, order), np.take(line, order)) for line in (mass.y, mass.x))
            figures |= {"last_step_mass": float(reach), "last_step_scale": float(scale)}
    if stiff and "stiffness" in stiff.curves:
        curve = stiff.curves["stiffness"]
        before = [(y, x) for x, y in zip(curve.x, curve.y, strict=True) if x <= 1 - 1 / FEW_STEPS + 1e-9]
        if before:
            peak, time = max(before)
            step = peak / FEW_STEPS
            figures |= {"step_stiffness": step, "step_growth": 1 + step, "stiffest": peak, "stiffest_time": time}
    return figures


def strength_of(row: Row) -> float | None:
    """Strength of re-injection of a plain setting: one whose other axes are usual; None for any other row."""
    usual = ((name, COLUMNS[name].usual) for name in row.setting if name in COLUMNS)
    if any(value is not None and row.setting[name] != value for name, value in usual):
        return None
    try:
        return float(row.setting.get("reinjection", ""))
    except ValueError:  # a rule, not a number; or a row without steps
        return None


def steps_of(row: Row) -> int:
    """Number of steps; 0 of a row without."""
    return int(row.setting.get("num_steps", 0))


def flows(run: Run, readout: str, strength: float | None = None) -> list[Row]:
    """The model's own scored samples of plain settings by rising number of steps, of one strength or of all."""
    chosen = [
        row
        for row in run.rows
        if (row.setting["name"], row.setting.get("readout")) == (FLOW, readout)
        and strength_of(row) is not None
        and strength in (None, strength_of(row))
        and row.value("perplexity") is not None
    ]
    return sorted(chosen, key=lambda row: (steps_of(row), strength_of(row)))


def plain_samples(run: Run) -> list[Row]:
    """The model's own scored samples of plain settings, of the parallel readout and then of the head."""
    return [*flows(run, PARALLEL), *flows(run, HEAD)]


def judged_steps(rows: Iterable[Row]) -> list[int]:
    """:data:`FEW_STEPS`, or the fewest above 1, and the most, of the numbers of steps that ``rows`` have."""
    steps = sorted({steps_of(row) for row in rows} - {0})
    few = FEW_STEPS if FEW_STEPS in steps else next((number for number in steps if number > 1), None)
    return sorted({few or steps[0], steps[-1]}) if steps else []


def scored_by(run: Run) -> str:
    """How the rows of a run were scored; "" without rows."""
    if not run.rows:
        return ""
    scorer = run.rows[0].protocol.get("scorer", {})
    name = "the run's language model" if scorer.get("class") == OWN_SCORER else scorer.get("name", "unknown")
    return f"{run.rows[0].num_samples} samples, scorer {name}, protocol {run.rows[0].protocol_hash}"


def number(row: Row, name: str) -> float:
    """A value of a row that has it."""
    return row.values[name].value or 0.0


def _row_figures(run: Run) -> Figures:
    """Late flips, saturation, gains, entropy and copies of a sweep."""
    plain, parallel, head = flows(run, PARALLEL, 0.0), flows(run, PARALLEL), flows(run, HEAD)
    real = next((row for row in run.rows if row.setting["name"] == HELD_OUT and row.value("perplexity")), None)
    figures = _gain("reinjection", plain, [row for row in parallel if strength_of(row)], real)
    figures |= _gain("head", plain, flows(run, HEAD, 0.0), real)
    late = [row for row in plain if row.value("late_flip_rate") is not None]
    if late and "late_flip_rate" not in run.results:
        few = judged_steps(late)[0]
        rate = next(number(row, "late_flip_rate") for row in late if steps_of(row) == few)
        figures |= {"late_flip_rate": rate, "late_flip_steps": few}
    if run.rows and run.rows[0].protocol.get("scorer", {}).get("class") == OWN_SCORER:
        figures["own_scorer"] = "the run's own language model"
    if real is not None:
        back = next((row for row in run.rows if row.setting["name"] == READ_BACK and row.value("perplexity")), None)
        if back is not None and (ratio := number(back, "perplexity") / number(real, "perplexity")) <= READ_WELL:
            figures["read_back"] = ratio
        figures |= _saturation(plain, real) if len(plain) > 1 else {}
        figures |= _entropy([rows for rows in (parallel, head) if rows], real)
        figures |= _copies([*parallel, *head], real)
    return figures


def _apart(first: Row, second: Row) -> bool:
    """Whether the 95 % intervals of the perplexities lie apart; true without intervals."""
    one_end, other_end = first.interval("perplexity"), second.interval("perplexity")
    return not one_end or not other_end or one_end.high < other_end.low or one_end.low > other_end.high


def _saturation(plain: list[Row], real: Row) -> Figures:
    fewer, last = plain[-2:]
    perplexity = number(last, "perplexity")
    change = perplexity / number(fewer, "perplexity") - 1
    return {
        "saturation": perplexity / number(real, "perplexity"),
        "saturation_perplexity": perplexity,
        "saturation_steps": steps_of(last),
        "saturation_change": change,
        "saturation_fewer": steps_of(fewer),
        "saturation_falling": "yes" if change <= -STILL_FALLING and _apart(fewer, last) else None,
    }


def _gain(name: str, plain: list[Row], others: list[Row], real: Row | None) -> Figures:
    """The largest share of perplexity that ``others`` lose against ``plain``, at few steps or at the most.

    Of several strengths the best counts, one with a certain gain that is not colder first.
    """
    before = {steps_of(row): row for row in plain}
    others = [row for row in others if steps_of(row) in before]
    judged = judged_steps(others)
    gains = [_one_gain(before[steps_of(row)], row, real) for row in others if steps_of(row) in judged]
    best = max(gains, key=lambda gain: (gain["clean"], gain["gain"]), default={})
    return {f"{name}_{key}": value for key, value in best.items()}


def _one_gain(before: Row, after: Row, real: Row | None) -> Figures:
    entropy, real_entropy = number(after, "entropy_nats"), number(real, "entropy_nats") if real else None
    low = -inf if real_entropy is None else min(real_entropy - ENTROPY_BAND_NATS, number(before, "entropy_nats"))
    gain = 1 - number(after, "perplexity") / number(before, "perplexity")
    colder, certain = entropy < low, _apart(before, after)
    return {
        "gain": gain,
        "clean": float(gain > 0 and certain and not colder),
        "strength": strength_of(after),
        "steps": steps_of(after),
        "before": number(before, "perplexity"),
        "after": number(after, "perplexity"),
        "entropy": entropy,
        "real_entropy": real_entropy,
        "colder": "yes" if colder else None,
        "uncertain": None if certain else "yes",
    }


def _entropy(groups: list[list[Row]], real: Row) -> Figures:
    """Of the likeliest samples of each readout, those with the least entropy."""
    likeliest = [min(rows, key=lambda row: number(row, "perplexity")) for rows in groups]
    if not likeliest:
        return {}
    worst = min(likeliest, key=lambda row: number(row, "entropy_nats"))
    return {
        "entropy_gap": number(real, "entropy_nats") - number(worst, "entropy_nats"),
        "entropy_likeliest": number(worst, "entropy_nats"),
        "entropy_real": number(real, "entropy_nats"),
        "entropy_setting": label_of(worst.setting),
        "repeated_likeliest": worst.value("repeated_4grams"),
        "repeated_real": real.value("repeated_4grams"),
    }


def _copies(rows: list[Row], real: Row) -> Figures:
    """Memorised 8-grams of the samples that have the most, over held-out text's."""
    rows, usual = [row for row in rows if row.value("memorised_8grams") is not None], real.value("memorised_8grams")
    if not rows or usual is None:
        return {}
    worst = max(rows, key=lambda row: number(row, "memorised_8grams"))
    share = number(worst, "memorised_8grams")
    return {
        "copies": share / usual if usual else inf if share else 0.0,
        "copies_share": share,
        "copies_usual": usual,
        "copies_setting": label_of(worst.setting),
        "copies_longest": max(row.value("longest_copy_tokens") or 0.0 for row in rows),
    }
