"""What a diagnostic returns: numbers with intervals, curves, and the facts behind them.

A number that the input does not determine (a constant decoder, a trajectory of one step) is None, never NaN.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, asdict, dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from fewstep.metrics.intervals import Interval, bootstrap_interval

NUM_RESAMPLES = 1000


@dataclass(frozen=True)
class Estimate:
    """A number measured on ``num_examples`` examples, with its 95 % bootstrap interval over them.

    ``value`` and ``interval`` are None where the examples do not determine it.
    """

    value: float | None
    interval: Interval | None
    num_examples: int


@dataclass(frozen=True)
class Row:
    """One line of the table. ``name`` is its key in the JSON, and after ``diag/`` its name in the logs."""

    name: str
    estimate: Estimate
    unit: str = ""
    note: str = ""


@dataclass(frozen=True)
class Series:
    """One line or set of bars: ``x`` and ``y`` of equal length; ``low`` and ``high`` bound y where they are known."""

    label: str
    x: tuple[float, ...]
    y: tuple[float, ...]
    low: tuple[float, ...] | None = None
    high: tuple[float, ...] | None = None


@dataclass(frozen=True)
class Axes:
    """How curves are drawn: as "lines", or as "bars" with x at the middles of bars of equal width."""

    title: str
    x_label: str
    y_label: str
    _: KW_ONLY
    kind: Literal["lines", "bars"] = "lines"
    log_x: bool = False
    log_y: bool = False


@dataclass(frozen=True)
class Picture(Axes):
    """A picture as data, drawn by :func:`fewstep.evaluation.pictures.write_picture`."""

    series: tuple[Series, ...]


@dataclass(frozen=True)
class Result:
    """Result of one diagnostic, ours or a user's: ``name`` is its key in the JSON and the name of its picture.

    ``rows`` are its lines in the table; ``curves``, by their keys, are drawn on ``axes`` (None: no picture); ``facts``
    are further values fit for JSON.
    """

    name: str
    rows: tuple[Row, ...] = ()
    curves: Mapping[str, Series] = field(default_factory=dict)
    axes: Axes | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Estimate:
        """The estimate of the row ``name``."""
        return {row.name: row.estimate for row in self.rows}[name]

    def picture(self) -> Picture | None:
        """The curves on their axes; None without a point to draw."""
        if self.axes is None or not any(series.x for series in self.curves.values()):
            return None
        return Picture(series=tuple(self.curves.values()), **asdict(self.axes))


def estimate_series(label: str, x: Sequence[float], estimates: Sequence[Estimate]) -> Series:
    """``estimates`` over ``x`` with their intervals; an undetermined one has no point."""
    known = [
        (float(place), estimate.value, estimate.interval)
        for place, estimate in zip(x, estimates, strict=True)
        if estimate.value is not None and estimate.interval is not None
    ]
    lows, highs = (tuple(getattr(interval, end) for _, _, interval in known) for end in ("low", "high"))
    return Series(label, tuple(place for place, _, _ in known), tuple(value for _, value, _ in known), lows, highs)


def curves_over(x: Sequence[float], results: Sequence[Result], labels: Mapping[str, str]) -> dict[str, Series]:
    """The first rows of ``results``, one result for each of ``x``, as curves: ``labels`` by key, in the rows' order."""
    return {
        key: estimate_series(label, x, [result.rows[place].estimate for result in results])
        for place, (key, label) in enumerate(labels.items())
    }


def mean_estimate(values: Tensor, weights: Tensor, generator: torch.Generator) -> Estimate:
    """Mean of ``values`` (N, P) over the places where ``weights`` (N, P) is not 0; examples (rows) are resampled.

    Values at weight 0 are ignored, NaN included.
    """
    weights, values = weights.double().cpu(), values.double().cpu()
    return ratio_estimate(torch.where(weights != 0, values * weights, 0.0), weights, generator)


def mean_of_all(values: Tensor, generator: torch.Generator) -> Estimate:
    """:func:`mean_estimate` of all ``values`` (N, P)."""
    return mean_estimate(values, torch.ones_like(values), generator)


def ratio_estimate(numerators: Tensor, denominators: Tensor, generator: torch.Generator) -> Estimate:
    """Sum of ``numerators`` (N, ...) over the sum of ``denominators`` (N, ...); examples (rows) are resampled.

    Undetermined where the denominators add up to 0.
    """
    sums = [values.double().cpu().reshape(len(values), -1).sum(1) for values in (numerators, denominators)]
    stacked = torch.stack(sums, 1)
    counted = stacked[stacked[:, 1] != 0]  # an example without a valid place says nothing and is not resampled
    value = float(_ratio(stacked))
    if not math.isfinite(value):
        return Estimate(None, None, len(counted))
    return resampled(value, counted, _ratio, generator)


def quantile_estimate(values: Tensor, weights: Tensor, q: float, generator: torch.Generator) -> Estimate:
    """Quantile ``q`` in [0, 1] of ``values`` (N, P) over the places where ``weights`` (N, P) is not 0."""
    counted = weights.cpu() != 0
    rows = torch.where(counted, values.double().cpu(), torch.nan)[counted.any(1)]
    if not len(rows):
        return Estimate(None, None, 0)

    def quantile(picked: Tensor) -> Tensor:
        return torch.nanquantile(picked.flatten(-2), q, dim=-1)

    return resampled(float(quantile(rows)), rows, quantile, generator)


def resampled(
    value: float, rows: Tensor, statistic: Callable[[Tensor], Tensor], generator: torch.Generator
) -> Estimate:
    """``value`` with the bootstrap interval of ``statistic`` over ``rows`` (N, ...), an example each.

    ``statistic`` maps R resamples (R, N, ...) to (R,).
    """
    return Estimate(value, bootstrap_interval(rows, statistic, NUM_RESAMPLES, generator), len(rows))


def _ratio(stacked: Tensor) -> Tensor:
    """Sum of the first column of (..., N, 2) over that of the second, NaN where the latter is 0."""
    numerator, denominator = stacked.sum(-2).unbind(-1)
    return torch.where(denominator != 0, numerator / denominator, torch.nan)
