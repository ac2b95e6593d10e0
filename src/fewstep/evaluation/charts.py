"""Charts of a sweep as data: perplexity, and the entropy beside it, over what sampling costs."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from fewstep.diagnostics.result import Picture, Series
from fewstep.evaluation.rows import HELD_OUT, LANGUAGE_MODEL, NOISE, READ_BACK, SHUFFLED, Row, label_of

YARDSTICKS = (HELD_OUT, LANGUAGE_MODEL, SHUFFLED, "unigram draws", NOISE, READ_BACK)
ENTROPY_BAND_NATS = 0.3
"""Perplexities compare only among samples whose entropy is this close to real text's."""


@dataclass(frozen=True)
class Cost:
    """The x axis of a chart: its ``label``, and ``of`` a row."""

    label: str
    of: Callable[[Row], float | None]


def _seconds(row: Row) -> float | None:
    speed = row.value("tokens_per_second")
    return 1000 / speed if speed else None


STEPS = Cost("steps K", lambda row: float(row.setting["num_steps"]))
NFE = Cost("NFE: forward passes a sample, the readout's included", lambda row: row.value("nfe"))
SECONDS = Cost("seconds for 1,000 tokens", _seconds)


def score_pictures(rows: Sequence[Row], cost: Cost, scorer: str) -> tuple[Picture, Picture]:
    """Perplexity over ``cost`` with its 95 % intervals, and unigram entropy; a line per setting, whose points are its
    numbers of steps, or of tokens committed at a time where there are several, and a horizontal one per yardstick.

    The band around real text's entropy is 0.3 nats: outside it perplexities do not compare. Rows without a perplexity
    or a cost are left out.
    """
    shown = [r for r in rows if r.setting["name"] not in YARDSTICKS and r.value("perplexity") and cost.of(r)]
    commits = {row.setting.get("commit_tokens", 0) for row in shown}
    along = "commit_tokens" if len(commits) > 1 else "num_steps"
    shown.sort(key=lambda row: (float(row.setting["num_steps"]), cost.of(row) or 0.0))
    costs = [cost.of(row) or 0.0 for row in shown] or [1.0]
    ends = (min(costs), max(costs))
    lines: dict[str, list[Row]] = {}
    for row in shown:
        setting = {name: value for name, value in row.setting.items() if name != along}
        lines.setdefault(label_of(setting), []).append(row)
    beside = [row for name in YARDSTICKS for row in rows if row.setting["name"] == name]
    quality = [row_series(label, line, cost, "perplexity") for label, line in lines.items()]
    entropy = [row_series(label, line, cost, "entropy_nats") for label, line in lines.items()]
    for row in beside:
        name, band = str(row.setting["name"]), ENTROPY_BAND_NATS if row.setting["name"] == HELD_OUT else None
        quality += _level(name, ends, row.value("perplexity"))
        entropy += _level(name, ends, row.value("entropy_nats"), band)
    label, nats = f"perplexity under {scorer}", "unigram entropy (nats)"
    return (
        Picture("Perplexity", cost.label, label, tuple(quality), log_x=True, log_y=True),
        Picture("Entropy: low is repetition or short", cost.label, nats, tuple(entropy), log_x=True),
    )


def row_series(label: str, line: Iterable[Row], cost: Cost, name: str) -> Series:
    """The values ``name`` of a line's rows over ``cost``, with their intervals."""
    points = [(cost.of(row) or 0.0, row.value(name) or 0.0, row.interval(name)) for row in line]
    bounds = [(i.low, i.high) if i else (y, y) for _, y, i in points]
    x, y = tuple(point[0] for point in points), tuple(point[1] for point in points)
    return Series(label, x, y, tuple(low for low, _ in bounds), tuple(high for _, high in bounds))


def _level(name: str, ends: tuple[float, float], value: float | None, band: float | None = None) -> list[Series]:
    if value is None:
        return []
    low, high = (None, None) if band is None else ((value - band,) * 2, (value + band,) * 2)
    return [Series(name, ends, (value, value), low, high)]
