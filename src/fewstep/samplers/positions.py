"""Re-injection by latent position: open positions get noise, decided ones keep theirs. B examples, K positions."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from fewstep.paths import Path
from fewstep.samplers.reinjection import (
    UNTOUCHED,
    NoisePlan,
    NoiseWeights,
    TimedReinjection,
    as_timed,
    checked_strengths,
)

Decided = Callable[[Tensor], Tensor]
"""x1_hat (B, K, D) -> how decided each position is, (B, K) in [0, 1]: 0 open, 1 decided."""


class CommitmentReinjection:
    """gamma = ``strength`` (1 - decided): a position's noise is renewed as far as its tokens are still open.

    ``decided`` is a function from x1_hat (B, K, D), which is zero at padding, to (B, K) in [0, 1]: a readout's
    confidence or a distance to its decision boundary. The sampler does not know what it asks, and does not count it
    among the evaluations. Row b of its result may depend on row b of its argument only; then a sample does not depend
    on its batch, for noise is drawn in every step (but the last) whatever the answer. ``strength``, a number, one a
    step, or a schedule over time, is what an entirely open position gets (this project's definition, after the
    confidence rule of masked models, arXiv:2202.04200).

    Every position keeps the path's variance. Raises ValueError for strengths outside [0, 1].
    """

    def __init__(self, decided: Decided, strength: float | Sequence[float] | TimedReinjection = 1.0) -> None:
        self.decided = decided
        self.strength = as_timed(strength)

    def plan(self, path: Path, times: Tensor) -> NoisePlan:
        """See :class:`fewstep.samplers.Reinjection`; raises ValueError where the strengths do not fit the steps."""
        return CommitmentPlan(self.decided, tuple(checked_strengths(self.strength, path, times).tolist()))


@dataclass(frozen=True)
class CommitmentPlan:
    """``decided`` with the strengths of N steps."""

    decided: Decided
    strengths: tuple[float, ...]

    @property
    def initial(self) -> NoiseWeights:
        """The initial noise as it is."""
        return UNTOUCHED

    def weights(self, step: int, x1_hat: Tensor, mask: Tensor | None) -> NoiseWeights:
        """Weights (B, K), those of padding included.

        Raises ValueError where ``decided`` gives another shape, or leaves [0, 1] at a real position.
        """
        decided = self.decided(x1_hat)
        if decided.shape != x1_hat.shape[:2]:
            raise ValueError(
                f"decided has shape {tuple(decided.shape)} for predictions {tuple(x1_hat.shape)}: expected one number"
                " a position."
            )
        decided = decided.to(x1_hat.dtype)
        if mask is not None:
            decided = decided.masked_fill(~mask.bool(), 1.0)
        if not bool(((decided >= 0) & (decided <= 1)).all()):
            raise ValueError(
                f"decided lies between {decided.min():g} and {decided.max():g}: expected numbers between 0 (open)"
                " and 1 (decided)."
            )
        return NoiseWeights.preserving(self.strengths[step] * (1 - decided))
