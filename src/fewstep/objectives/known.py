"""Which latent positions of a training example are known, so that a flow learns to continue and to fill in."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from fewstep.shapes import rand


class Split(NamedTuple):
    """Positions ``written`` (B, K) that the loss counts, ``known`` (B, K) that the network sees, and in which rows."""

    written: Tensor
    known: Tensor
    rows: Tensor


@dataclass(frozen=True)
class KnownPositions:
    """Shares of the examples with a known part; in the rest all is written.

    ``prefix``: the beginning is known, up to a place that is uniform. ``gaps``: all is known but one or two gaps, of
    uniform place and length. In a share ``dropped`` of these the known part is left out, for the loss and for the
    network, which so learns the estimate without it, for guidance (arXiv:2207.12598, algorithm 1). Where the data are
    pairs, the prompts are known and the other two shares do not count.
    """

    prefix: float = 0.3
    gaps: float = 0.2
    dropped: float = 0.1

    def __post_init__(self) -> None:
        if min(self.prefix, self.gaps) < 0 or self.prefix + self.gaps > 1 or not 0 <= self.dropped < 1:
            raise ValueError(
                f"known prefix {self.prefix}, gaps {self.gaps}, dropped {self.dropped}: expected shares >= 0 of which "
                "the first two add up to at most 1, and the last is below 1"
            )

    def split(self, mask: Tensor, generator: torch.Generator, prompts: Tensor | None = None) -> Split:
        """The parts of examples whose real positions ``mask`` (B, K) come first; one at least is written.

        The data's own ``prompts`` (B, K) bool are known in place of what is drawn, in every example.
        """
        size = len(mask)
        # Drawn and read on the generator's device, the CPU: nothing here makes an accelerator wait.
        kind, is_kept = (torch.rand(size, generator=generator, device=generator.device) for _ in range(2))
        start, second = (rand((size, 1), mask, generator) for _ in range(2))
        edges = rand((size, 2, 2), mask, generator)
        count, place = mask.sum(1, keepdim=True), torch.arange(mask.shape[1], device=mask.device)[None]
        begins = (place < 1 + (start * (count - 1)).floor()) & (count > 1)
        gap = within(edges[:, 0], count, place) | within(edges[:, 1], count, place) & (second < 0.5)
        is_prefix, has_known = kind < self.prefix, kind < self.prefix + self.gaps
        if prompts is not None:
            begins, is_prefix, has_known = prompts, torch.ones_like(is_prefix), torch.ones_like(has_known)
        known = torch.where(is_prefix.to(mask.device)[:, None], begins, ~gap) & mask
        known &= has_known.to(mask.device)[:, None]
        kept = has_known & (is_kept >= self.dropped)
        return Split(mask & ~known, known & kept.to(mask.device)[:, None], kept.nonzero()[:, 0])


def within(edges: Tensor, count: Tensor, place: Tensor) -> Tensor:
    """Gaps (B, K) from uniform numbers ``edges`` (B, 2): their starts among ``count`` (B, 1) places, their lengths."""
    first = (edges[:, :1] * count).floor()
    length = 1 + (edges[:, 1:] * (count - first)).floor()
    return (place >= first) & (place < first + length)
