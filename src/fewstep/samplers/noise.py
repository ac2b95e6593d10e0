"""Where the re-injected noise comes from: fresh in every step, or one draw used again and again."""

from collections.abc import Iterator
from itertools import repeat
from typing import Protocol

from torch import Tensor

from fewstep.shapes import Generators, randn


class NoiseSource(Protocol):
    """A source of standard normal noise for one trajectory."""

    def draws(self, like: Tensor, generator: Generators) -> Iterator[Tensor]:
        """Noise of the shape and dtype of ``like`` (B, K, D), one tensor for each step that asks. Nothing is drawn from
        ``generator`` (one, or one an example) before it is asked for."""
        ...


class FreshNoise:
    """Independent noise in every step."""

    def draws(self, like: Tensor, generator: Generators) -> Iterator[Tensor]:
        """See :class:`NoiseSource`."""
        while True:
            yield randn(tuple(like.shape), like, generator).to(like.dtype)


class ReusedNoise:
    """One draw a trajectory, independent of the initial noise, which every step adds again.

    The control for :class:`FreshNoise`: the first step that adds noise has the same law, but the noise of later states
    is correlated with what they already hold, and their variance is too large. With strength gamma and the true pair
    the state after two steps has noise of variance sigma^2 (1 + 2 gamma^2 sqrt(1 - gamma^2)), not sigma^2.
    """

    def draws(self, like: Tensor, generator: Generators) -> Iterator[Tensor]:
        """See :class:`NoiseSource`."""
        yield from repeat(randn(tuple(like.shape), like, generator).to(like.dtype))
