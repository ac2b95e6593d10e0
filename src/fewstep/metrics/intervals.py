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


def bootstrap_interval(
    values: Tensor, statistic: Callable[[Tensor], Tensor], num_resamples: int, generator: torch.Generator
) -> Interval:
    """95 % percentile bootstrap interval (Efron 1979) of ``statistic`` over the rows of ``values`` (N, ...).

    Rows are whole samples, whose tokens are not independent. ``statistic`` maps R resamples (R, N, ...) float64 to
    (R,). Intervals of fewer than 20 samples are somewhat narrow. scipy.stats.bootstrap does the same, but draws from a
    numpy generator.
    """
    values = values.detach().double().cpu()
    picks = torch.randint(len(values), (num_resamples, len(values)), generator=generator, device=generator.device).cpu()
    parts = picks.split(max(1, _NUMBERS_AT_ONCE // max(1, values.numel())))
    results = torch.cat([statistic(values[part]) for part in parts])
    tail = (1 - 0.95) / 2
    low, high = torch.quantile(results, torch.tensor([tail, 1 - tail], dtype=torch.float64)).tolist()
    return Interval(low, high)


def share_interval(hits: Tensor) -> Interval:
    """Wilson's 95 % score interval (Wilson 1927) of the share of true entries of ``hits`` (N,) bool."""
    from scipy.stats import binomtest  # loads slowly, and few commands count shares

    counted = binomtest(int(hits.sum()), hits.numel()).proportion_ci(0.95, "wilson")
    return Interval(float(counted.low), float(counted.high))


def mean_interval(values: Sequence[float]) -> Interval | None:
    """Student's 95 % interval of the mean of ``values``, such as one figure for each seed; None for fewer than 2."""
    from scipy.stats import t

    if len(values) < 2:
        return None
    sample = torch.tensor(values, dtype=torch.float64)
    mean, half = float(sample.mean()), float(t.ppf(0.975, len(values) - 1)) * float(sample.std()) / len(values) ** 0.5
    return Interval(mean - half, mean + half)
