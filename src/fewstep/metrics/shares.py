"""How far a counted share can be trusted. N things counted."""

import math
from dataclasses import dataclass

from torch import Tensor

from fewstep.metrics.bootstrap import Interval

NORMAL_QUANTILE = 1.959963984540054
"""97.5 % of the standard normal law lies below."""


@dataclass(frozen=True)
class Share:
    """``value`` of ``total`` things, in [0, 1], with its 95 % interval."""

    value: float
    interval: Interval
    total: int


def share_of(found: Tensor) -> Share:
    """Share of true entries of ``found`` (N,) bool, with Wilson's score interval (Wilson 1927) for independent ones.

    Raises ``ValueError`` for no entries.
    """
    total = found.numel()
    if not total:
        raise ValueError("nothing to count: expected at least one entry")
    value, z_squared = float(found.double().mean()), NORMAL_QUANTILE**2
    middle = (value + z_squared / (2 * total)) / (1 + z_squared / total)
    spread = value * (1 - value) / total + z_squared / (4 * total**2)
    reach = NORMAL_QUANTILE * math.sqrt(spread) / (1 + z_squared / total)
    low, high = max(0.0, min(value, middle - reach)), min(1.0, max(value, middle + reach))  # rounding at 0 and 1
    return Share(value, Interval(low, high), total)
