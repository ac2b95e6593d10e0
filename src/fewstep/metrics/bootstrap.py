"""How far a number measured on samples can be trusted."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

NUMBERS_AT_ONCE = 2**20
"""Size of the resamples that a batched statistic sees at once."""


@dataclass(frozen=True)
class Interval:
    """A confidence interval, ``low`` <= ``high``, in the unit of the number that it belongs to."""

    low: float
    high: float


def bootstrap_interval(
    values: Tensor,
    statistic: Callable[[Tensor], float | Tensor],
    num_resamples: int,
    generator: torch.Generator,
    *,
    level: float = 0.95,
    batched: bool = False,
) -> Interval:
    """Percentile bootstrap interval (Efron 1979) of ``statistic`` over the rows of ``values`` (N, ...).

    Rows are whole samples: the tokens of one sample are not independent, so samples are what is drawn anew, N with
    replacement, ``num_resamples`` times. ``statistic`` maps float64 rows (N, ...) to a number, or with ``batched`` many
    resamples (R, N, ...) to as many numbers (R,), which is far faster. Percentile intervals of few samples are somewhat
    narrow; under 20 samples take them as a hint. Raises ValueError for no rows, fewer
    than 2 resamples, or a level outside (0, 1).
    """
    if len(values) < 1 or num_resamples < 2 or not 0 < level < 1:
        raise ValueError(
            f"{len(values)} samples, {num_resamples} resamples, level {level}: "
            "expected at least 1 sample, at least 2 resamples and a level between 0 and 1"
        )
    values = values.detach().double().cpu()
    picks = torch.randint(len(values), (num_resamples, len(values)), generator=generator, device=generator.device).cpu()
    if batched:
        parts = picks.split(max(1, NUMBERS_AT_ONCE // max(1, values.numel())))
        results = torch.cat([torch.as_tensor(statistic(values[part])) for part in parts]).double()
    else:
        results = torch.tensor([float(statistic(values[rows])) for rows in picks], dtype=torch.float64)
    tail = (1 - level) / 2
    low, high = torch.quantile(results, torch.tensor([tail, 1 - tail], dtype=torch.float64)).tolist()
    return Interval(low, high)
