"""How far a number measured on samples can be trusted."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

NORMAL_QUANTILE = 1.959963984540054
"""97.5 % quantile of the standard normal distribution."""
_NUMBERS_AT_ONCE = 2**20


@dataclass(frozen=True)
class Interval:
    """A confidence interval, ``low`` <= ``high``, in the unit of the number that it belongs to."""

    low: float
    high: float


@dataclass(frozen=True)
class Share:
    """``value`` of ``total`` things, in [0, 1], with its 95 % interval."""

    value: float
    interval: Interval
    total: int


def bootstrap_interval(
    values: Tensor,
    statistic: Callable[[Tensor], float | Tensor],
    num_resamples: int,
    generator: torch.Generator,
    *,
    batched: bool = False,
) -> Interval:
    """95 % percentile bootstrap interval (Efron 1979) of ``statistic`` over the rows of ``values`` (N, ...).

    Rows are whole samples, whose tokens are not independent. ``statistic`` maps float64 rows (N, ...) to a number, or
    with ``batched`` R resamples (R, N, ...) to (R,), which is far faster. Intervals of fewer than 20 samples are
    somewhat narrow. scipy.stats.bootstrap does the same, but draws from a numpy generator.
    """
    if len(values) < 1 or num_resamples < 2:
        raise ValueError(f"{len(values)} samples, {num_resamples} resamples: expected at least 1 and at least 2")
    values = values.detach().double().cpu()
    picks = torch.randint(len(values), (num_resamples, len(values)), generator=generator, device=generator.device).cpu()
    if batched:
        parts = picks.split(max(1, _NUMBERS_AT_ONCE // max(1, values.numel())))
        results = torch.cat([torch.as_tensor(statistic(values[part])) for part in parts]).double()
    else:
        results = torch.tensor([float(statistic(values[rows])) for rows in picks], dtype=torch.float64)
    tail = (1 - 0.95) / 2
    low, high = torch.quantile(results, torch.tensor([tail, 1 - tail], dtype=torch.float64)).tolist()
    return Interval(low, high)


def share_of(hits: Tensor) -> Share:
    """Share of true entries of ``hits`` (N,) bool, with Wilson's 95 % score interval (Wilson 1927)."""
    from scipy.stats import binomtest  # loads slowly, and few commands count shares

    if not hits.numel():
        raise ValueError("nothing to count: expected at least one entry")
    counted = binomtest(int(hits.sum()), hits.numel()).proportion_ci(0.95, "wilson")
    return Share(float(hits.double().mean()), Interval(float(counted.low), float(counted.high)), hits.numel())


def mean_interval(values: Sequence[float]) -> Interval | None:
    """Student's 95 % interval of the mean of ``values``, such as one figure for each seed; None for fewer than 2."""
    from scipy.stats import t

    if len(values) < 2:
        return None
    sample = torch.tensor(values, dtype=torch.float64)
    mean, half = float(sample.mean()), float(t.ppf(0.975, len(values) - 1)) * float(sample.std()) / len(values) ** 0.5
    return Interval(mean - half, mean + half)
