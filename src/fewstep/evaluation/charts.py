"""Charts of a sweep as data: perplexity, and the entropy beside it, over what sampling costs."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fewstep.diagnostics.result import Picture, Series
from fewstep.evaluation.rows import HELD_OUT, LANGUAGE_MODEL, NOISE, SHUFFLED, Row, label_of

YARDSTICKS = (HELD_OUT, LANGUAGE_MODEL, SHUFFLED, "unigram draws", NOISE)
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

    def series(name: str, band: float = 0.0) -> tuple[Series, ...]:
        """A line per setting and a level per yardstick; real text's has a ``band``."""
        drawn = []
        for label, line in lines.items():
            points = [(cost.of(row) or 0.0, row.value(name) or 0.0, row.interval(name)) for row in line]
            bounded = [(x, y, i.low if i else y, i.high if i else y) for x, y, i in points]
            drawn.append(Series(label, *zip(*bounded, strict=True)))
        for row in beside:
            if (level := row.value(name)) is not None:
                is_banded = band and row.setting["name"] == HELD_OUT
                bounds = ((level - band,) * 2, (level + band,) * 2) if is_banded else (None, None)
                drawn.append(Series(str(row.setting["name"]), ends, (level, level), *bounds))
        return tuple(drawn)

    label, entropy = f"perplexity under {scorer}", "Entropy: low is repetition or short"
    return (
        Picture("Perplexity", cost.label, label, series("perplexity"), log_x=True, log_y=True),
        Picture(entropy, cost.label, "unigram entropy (nats)", series("entropy_nats", ENTROPY_BAND_NATS), log_x=True),
    )
