"""What a diagnostic gives back: numbers with intervals, rows for a table, and a picture as data.

A number that the input does not determine (a constant decoder, a single step) is None, never NaN.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from fewstep.metrics import Interval, bootstrap_interval

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
class DiagnosticRow:
    """One line of the table: ``name`` as wandb has it (without ``diag/``), its estimate, ``unit`` and a ``note``."""

    name: str
    estimate: Estimate
    unit: str = ""
    note: str = ""


@dataclass(frozen=True)
class Series:
    """One line or one set of bars: ``x`` and ``y`` of equal length; ``low`` and ``high`` bound y where it is known."""

    label: str
    x: tuple[float, ...]
    y: tuple[float, ...]
    low: tuple[float, ...] | None = None
    high: tuple[float, ...] | None = None


@dataclass(frozen=True)
class Picture:
    """A picture as data: :func:`fewstep.report.write_picture` draws it.

    ``kind`` "lines", or "bars" with x at the middles of bars of equal width.
    """

    title: str
    x_label: str
    y_label: str
    series: tuple[Series, ...]
    kind: Literal["lines", "bars"] = "lines"
    log_x: bool = False
    log_y: bool = False


class Diagnostic(Protocol):
    """What every result of this room can become. ``name`` is the first word of its rows' names, and its file's name."""

    @property
    def name(self) -> str:
        """Its name."""
        ...

    def rows(self) -> tuple[DiagnosticRow, ...]:
        """Its lines in the table."""
        ...

    def to_dict(self) -> dict[str, Any]:
        """Plain values, fit for JSON: no NaN, no infinity, None where something is undetermined."""
        ...

    def picture(self) -> Picture | None:
        """What is better looked at than read, where there is such a thing."""
        ...


def mean_estimate(values: Tensor, weights: Tensor, generator: torch.Generator) -> Estimate:
    """Mean of ``values`` (N, P) over all places where ``weights`` (N, P) is not 0; examples are resampled, not places.

    Values at weight 0 are ignored, NaN included.
    """
    weights = weights.double().cpu()
    values = values.double().cpu()
    return ratio_estimate(torch.where(weights != 0, values * weights, 0.0), weights, generator)


def ratio_estimate(numerators: Tensor, denominators: Tensor, generator: torch.Generator) -> Estimate:
    """Sum of ``numerators`` (N, ...) over the sum of ``denominators`` (N, ...); examples (rows) are resampled.

    Undetermined where the denominators add up to 0.
    """
    stacked = torch.stack([_row_sums(numerators), _row_sums(denominators)], 1)
    used = int((stacked[:, 1] != 0).sum())
    value = float(_ratio(stacked))
    if not math.isfinite(value):
        return Estimate(None, None, used)
    kept = stacked[stacked[:, 1] != 0]  # an example without a valid place says nothing and is not resampled
    return Estimate(value, bootstrap_interval(kept, _ratio, NUM_RESAMPLES, generator, batched=True), used)


def quantile_estimate(values: Tensor, weights: Tensor, q: float, generator: torch.Generator) -> Estimate:
    """Quantile ``q`` in [0, 1] of ``values`` (N, P) over the places where ``weights`` (N, P) is not 0."""
    seen = weights.cpu() != 0
    rows = torch.where(seen, values.double().cpu(), torch.nan)
    used = seen.any(1)
    if not bool(used.any()):
        return Estimate(None, None, 0)
    rows = rows[used]

    def statistic(picked: Tensor) -> Tensor:
        return torch.nanquantile(picked.flatten(-2), q, dim=-1)

    interval = bootstrap_interval(rows, statistic, NUM_RESAMPLES, generator, batched=True)
    return Estimate(float(statistic(rows)), interval, int(used.sum()))


def _row_sums(values: Tensor) -> Tensor:
    return values.double().cpu().reshape(len(values), -1).sum(1)


def _ratio(stacked: Tensor) -> Tensor:
    """Sum of the first column of (..., N, 2) over that of the second, NaN where the latter is 0."""
    numerator, denominator = stacked.sum(-2).unbind(-1)
    return torch.where(denominator != 0, numerator / denominator, torch.nan)
