"""Pairs of times t <= s for objectives of two times. B batch."""

import torch
from torch import Tensor

from fewstep.schedules import TimeSampler


class TimePairs:
    """Two draws of ``time_sampler``, in order; the first ``instant_share`` of a batch has s = t (this project's layout;
    arXiv:2505.13447, section 4.3, recommends that most pairs be such), and the last ``end_share`` has s = 1.

    Raises ``ValueError`` for shares below 0 or above 1 together.
    """

    def __init__(self, time_sampler: TimeSampler, *, instant_share: float = 0.5, end_share: float = 0.1) -> None:
        if min(instant_share, end_share) < 0 or instant_share + end_share > 1:
            raise ValueError(
                f"instant_share {instant_share}, end_share {end_share}: expected shares >= 0 that add up to 1 at most"
            )
        self.time_sampler = time_sampler
        self.instant_share = instant_share
        self.end_share = end_share

    def instant(self, batch_size: int) -> int:
        """How many of a batch have s = t."""
        return round(self.instant_share * batch_size)

    def ending(self, batch_size: int) -> int:
        """How many of a batch have s = 1. Both shares are rounded, and those with s = t come first."""
        return min(round(self.end_share * batch_size), batch_size - self.instant(batch_size))

    def sample(self, batch_size: int, generator: torch.Generator, device: torch.device | str) -> tuple[Tensor, Tensor]:
        """``t`` and ``s`` (B,) float32, t in (0, 1) and t <= s <= 1."""
        one, other = (self.time_sampler.sample(batch_size, generator, device) for _ in range(2))
        t, s = torch.minimum(one, other), torch.maximum(one, other)
        first = self.instant(batch_size)
        last = batch_size - self.ending(batch_size)
        t, s = t.clone(), s.clone()
        # The single draw has the sampler's law; the smaller of two has another.
        t[:first], s[:first] = one[:first], one[:first]
        t[last:], s[last:] = one[last:], 1.0
        return t, s
