"""Result of a study: lines with intervals, and the numbers fitted to them. E examples."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from fewstep.metrics.intervals import NORMAL_QUANTILE, Interval, bootstrap_interval

NUM_RESAMPLES, MAX_ROWS = 1000, 500


@dataclass(frozen=True)
class Line:
    """``y`` over ``x``, with 95 % intervals ``low`` and ``high`` where y is estimated."""

    label: str
    x: tuple[float, ...]
    y: tuple[float, ...]
    low: tuple[float, ...] | None = None
    high: tuple[float, ...] | None = None


@dataclass(frozen=True)
class Fit:
    """A number with its 95 % ``interval`` (over examples; None where it is exact), and what the theory says it is."""

    name: str
    value: float
    interval: Interval | None
    expected: float | None = None

    def to_text(self) -> str:
        """One line of a table."""
        interval = "" if self.interval is None else f"  [{self.interval.low:.4g}, {self.interval.high:.4g}]"
        expected = "" if self.expected is None else f"  expected {self.expected:.4g}"
        return f"{self.name:<58} {self.value:9.4g}{interval}{expected}"


@dataclass(frozen=True)
class Curve:
    """One study: a picture's ``lines`` and axes, and ``fits``."""

    name: str
    title: str
    x_label: str
    y_label: str
    lines: tuple[Line, ...]
    fits: tuple[Fit, ...]
    log_x: bool = True
    log_y: bool = True

    def to_dict(self) -> dict[str, Any]:
        """Plain values, fit for JSON."""
        return asdict(self)


def mean_line(label: str, x: list[float], table: Tensor) -> Line:
    """Means of the columns of ``table`` (E, len(x)), with normal intervals."""
    table = table.double()
    mean, reach = table.mean(0), NORMAL_QUANTILE * table.std(0) / len(table) ** 0.5
    return Line(label, tuple(x), *(tuple(values.tolist()) for values in (mean, mean - reach, mean + reach)))


def power_law(name: str, x: list[float], table: Tensor, expected: float | None, generator: torch.Generator) -> Fit:
    """Exponent of the means of ``table`` (E, P) over ``x`` (P,): slope of least squares between the logarithms.

    The interval resamples examples, so it measures sampling error, not how far a finite range is from the limit.
    """
    log_x = torch.tensor(x, dtype=torch.float64).log()

    def exponent(rows: Tensor) -> Tensor:
        return slope(log_x, rows.mean(-2).log())

    return _fit(name, exponent, table, expected, generator)


def exact_power_law(name: str, x: Sequence[float], y: Sequence[float], expected: float) -> Fit:
    """The same of a curve that is known: how far a finite range is from the limit."""
    log_x, log_y = (torch.tensor(values, dtype=torch.float64).log() for values in (x, y))
    return Fit(name, float(slope(log_x, log_y)), None, expected)


def log_log_slope(name: str, x: Tensor, y: Tensor, expected: float | None, generator: torch.Generator) -> Fit:
    """The same where x is measured too: slope of log mean ``y`` over log mean ``x``, (E, P) of the same examples."""

    def exponent(rows: Tensor) -> Tensor:
        means = rows.mean(-3)
        return slope(means[..., 0].log(), means[..., 1].log())

    return _fit(name, exponent, torch.stack([x, y], -1), expected, generator)


def ratio(name: str, x: Tensor, y: Tensor, expected: float | None, generator: torch.Generator) -> Fit:
    """Sum of ``y`` over the sum of ``x``, both (E, P)."""

    def quotient(rows: Tensor) -> Tensor:
        return rows[..., 1].sum(-1) / rows[..., 0].sum(-1)

    return _fit(name, quotient, torch.stack([x.sum(1), y.sum(1)], -1), expected, generator)


def slope(x: Tensor, y: Tensor) -> Tensor:
    """Slope of least squares of ``y`` (..., P) over ``x`` (..., P)."""
    centred = x - x.mean(-1, keepdim=True)
    return (centred * y).sum(-1) / centred.square().sum(-1)


def _fit(
    name: str, statistic: Callable[[Tensor], Tensor], rows: Tensor, expected: float | None, generator: torch.Generator
) -> Fit:
    value = float(statistic(rows.double()))
    size = max(1, len(rows) // MAX_ROWS)  # means of groups of examples: the same mean, resampled in less time
    rows = torch.stack([group.double().mean(0) for group in rows.split(size) if len(group) == size])
    interval = bootstrap_interval(rows, statistic, NUM_RESAMPLES, generator, batched=True)
    return Fit(name, value, interval, expected)
