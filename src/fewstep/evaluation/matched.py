"""Perplexity at matched entropy: each setting is compared where its samples have real text's unigram entropy.

Perplexity falls as entropy falls, so rows of different entropy do not compare. A setting is sampled at T temperatures,
and its log-perplexity interpolated where the entropy is real text's. N samples, q quantities.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from fewstep.evaluation.rows import COLUMNS, HELD_OUT, READ_BACK, SHUFFLED, Axis, Column, Row, Value, key_of
from fewstep.evaluation.scorers import corpus_perplexity
from fewstep.metrics.intervals import Interval, bootstrap_interval

ENTROPY = "entropy_nats"
"""The value by which rows are matched: the mean entropy of a sample, whatever its length. Colder samples of blocks that
hold one document end early, and a short text has little entropy, so that lengths are matched as well."""
KEPT = ("perplexity", ENTROPY)
"""Statistics whose numbers of each sample a plan keeps for the intervals."""
FURTHER = ("repeated_4grams", "distinct_2", "rms_ratio", "tokens_per_sample", "nfe", "tokens_per_second")
BEFORE = [name for name in list(COLUMNS)[: list(COLUMNS).index("perplexity")] if name != "noise_scale"]
"""Columns before the temperature, which stands for the noise scale too."""
MATCHED_COLUMNS = {
    **{name: COLUMNS[name] for name in BEFORE},
    "temperature": Column("at temperature"),
    "perplexity": COLUMNS["perplexity"],
    "shuffled_ratio": Column("over shuffled", ".3f", interval=True),
    "distinct_2": COLUMNS["distinct_2"],
    "repeated_4grams": COLUMNS["repeated_4grams"],
    "repetition_ratio": Column("rep-4 / real", ".1f"),
    **{name: COLUMNS[name] for name in ("rms_ratio", "tokens_per_sample", "tokens_per_second", "num_samples")},
}
MATCHED_CAPTION = (
    "Each setting at the temperature where its samples have the unigram entropy of real text, {:.2f} nats a "
    "sample: log-perplexity interpolated linearly in entropy between neighbouring temperatures, of several places the "
    "lowest; where none brackets it, the nearest temperature, if its entropy is within the 95 % interval of real "
    "text's, {}. Temperature: of the noise (noise scale) for parallel and mask_predict unless --heat tokens was given, "
    "of the tokens for head and language model. never: not even that; behind it the nearest entropy, in nats. over "
    "shuffled: over the perplexity of shuffled words"
)


def at_entropy(frontier: Tensor, entropy_nats: float) -> Tensor:
    """Quantities (..., q) where a frontier has the entropy; NaN where it never has.

    ``frontier`` (..., T, 1 + q): entropy and the quantities by rising temperature, the first of them to be low. Linear
    in the entropy between neighbouring temperatures. Entropy need not rise with the temperature: of several places the
    one of the lowest first quantity is taken, for that is what the setting can do.
    """
    low, high = frontier[..., :-1, :], frontier[..., 1:, :]
    rise = high[..., :1] - low[..., :1]
    share = torch.where(rise == 0, torch.zeros_like(rise), (entropy_nats - low[..., :1]) / rise)
    there = (share >= 0) & (share <= 1) & ((rise != 0) | (low[..., :1] == entropy_nats))
    values = torch.where(there, torch.lerp(low, high, share)[..., 1:], math.nan)
    best = values[..., :1].nan_to_num(nan=math.inf).argmin(-2, keepdim=True)
    return values.take_along_dim(best, -2)[..., 0, :]


def matched_rows(rows: Sequence[Row]) -> list[Row]:
    """A row for each setting that was sampled at several temperatures, at the entropy of real text; before them real
    text and its words shuffled as they are.

    ``perplexity`` with its 95 % bootstrap interval over samples, which are resampled at all temperatures alike;
    ``shuffled_ratio``, over that of shuffled words; ``repeated_4grams``, over real text's ``repetition_ratio``,
    ``distinct_2``, ``rms_ratio``, lengths and speed, interpolated alike. The axis ``temperature`` says where. A
    setting that never gets there is taken as it is at its nearest entropy if that is within the interval of real
    text's, which is known no better; else it has no perplexity, and ``nearest_entropy_nats``. Empty without real text
    or a sweep.
    """
    fixed = {str(row.setting["name"]): row for row in rows if row.setting["name"] in (HELD_OUT, READ_BACK, SHUFFLED)}
    sweeps = sweeps_of(rows)
    if HELD_OUT not in fixed or fixed[HELD_OUT].value(ENTROPY) is None or not sweeps:
        return []
    target, bounds = _number(fixed[HELD_OUT], ENTROPY), fixed[HELD_OUT].interval(ENTROPY)
    matched = [*fixed.values(), *(_matched(sweep, target, bounds) for sweep in sweeps)]
    return [replace(row, values=row.values | _ratios(row, fixed)) for row in matched]


def temperature_of(row: Row) -> float:
    """The temperature of a row of a sweep: of the tokens where these are heated, else of the noise."""
    return float(row.setting.get("temperature", row.setting.get("noise_scale", 1.0)))


def sweeps_of(rows: Sequence[Row]) -> list[list[Row]]:
    """Scored rows that differ in temperature alone, at least two, by rising temperature."""
    groups: dict[object, list[Row]] = {}
    for row in rows:
        if row.value("perplexity") is not None and row.value(ENTROPY) is not None:
            groups.setdefault(key_of(_without_temperature(row)), []).append(row)
    return [sorted(group, key=temperature_of) for group in groups.values() if len(group) > 1]


def _without_temperature(row: Row) -> dict[str, Axis]:
    return {name: value for name, value in row.setting.items() if name not in ("temperature", "noise_scale")}


def _number(row: Row, name: str) -> float:
    value = row.value(name)
    return math.nan if value is None else value


def _matched(sweep: Sequence[Row], target: float, bounds: Interval | None) -> Row:
    """The rows of one setting at the entropy ``target``, or within ``bounds`` of it."""
    points = []
    for row in sweep:
        entropy, perplexity, *further = (_number(row, name) for name in (ENTROPY, "perplexity", *FURTHER))
        points.append([entropy, math.log(perplexity), temperature_of(row), *further])
    frontier = torch.tensor(points, dtype=torch.float64)
    log_perplexity, temperature, *further = at_entropy(frontier, target).tolist()
    nearest = min(sweep, key=lambda row: abs(_number(row, ENTROPY) - target))
    entropy = _number(nearest, ENTROPY)
    if math.isnan(log_perplexity) and bounds is not None and bounds.low <= entropy <= bounds.high:
        where = f"{temperature_of(nearest):.2f}"
        values = {name: nearest.values[name] for name in ("perplexity", ENTROPY, *FURTHER) if name in nearest.values}
    elif math.isnan(log_perplexity):
        where = f"never, {entropy:.2f}"
        values = {"perplexity": Value(None), "nearest_entropy_nats": Value(entropy)}
    else:
        where = f"{temperature:.2f}"
        values = {"perplexity": Value(math.exp(log_perplexity), _interval(sweep, target)), ENTROPY: Value(target)}
        values |= {name: Value(value) for name, value in zip(FURTHER, further, strict=True) if not math.isnan(value)}
    return replace(sweep[0], setting=_without_temperature(sweep[0]) | {"temperature": where}, values=values)


def _ratios(row: Row, fixed: Mapping[str, Row]) -> dict[str, Value]:
    """Perplexity over shuffled words' and repetition over real text's, where these are known."""
    ratios = {}
    for name, value, of in (("shuffled_ratio", "perplexity", SHUFFLED), ("repetition_ratio", FURTHER[0], HELD_OUT)):
        unit, own, bounds = fixed[of].value(value) if of in fixed else None, row.value(value), row.interval(value)
        if unit and own is not None:
            ratios[name] = Value(own / unit, bounds and Interval(bounds.low / unit, bounds.high / unit))
    return ratios


def _interval(sweep: Sequence[Row], entropy_nats: float) -> Interval | None:
    """Of the matched perplexity; None where samples have no score, and where too few resamples get there."""
    parts = [torch.tensor(row.per_sample.get(name, ()), dtype=torch.float64) for row in sweep for name in KEPT]
    if len({len(part) for part in parts}) > 1 or not len(parts[0]):
        return None

    def of(resamples: Tensor) -> Tensor:  # (R, N, 3 T): nats, tokens, entropy at each temperature
        columns = resamples.unflatten(-1, (len(sweep), 3)).transpose(-2, -3)
        frontier = torch.stack([columns[..., 2].mean(-1), corpus_perplexity(columns[..., :2]).log()], -1)
        return at_entropy(frontier, entropy_nats)[..., 0].exp().nan_to_num(nan=math.inf)

    interval = bootstrap_interval(torch.cat(parts, 1), of, 1000, torch.Generator().manual_seed(0))
    return interval if math.isfinite(interval.high) and math.isfinite(interval.low) else None
