"""What the objectives of flow maps share: some pairs of times are flow matching, the others jumps that are trained.

B batch, K positions, D latent dimension.
"""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from fewstep.denoisers import EstimateKind, FlowModel
from fewstep.objectives.few_step import PLAIN, Draw, FewStepObjective, Regression
from fewstep.objectives.flow_objective import require_two_times
from fewstep.objectives.time_pairs import TimePairs
from fewstep.objectives.weights import AdaptiveWeight
from fewstep.schedules import TimeSampler


@dataclass(frozen=True)
class Jumps:
    """The examples ``rows`` of a batch, with their own ``draw``, at states ``x_t`` (B', K, D) and times ``t``, going to
    ``s`` (B',) > t. Two draws may coincide in float32, so that nothing may divide by s - t."""

    rows: slice
    draw: Draw
    x_t: Tensor
    t: Tensor
    s: Tensor


class FlowMapObjective(FewStepObjective):
    """Flow matching on the pairs of times with s = t (``instant_share``), and :meth:`jump_regression` on the others, of
    which ``end_share`` of the batch ends at s = 1 (:class:`TimePairs`).

    The flow that the pairs with s = t learn is the one that the jumps follow. The network must have two times:
    ``ValueError`` otherwise.
    """

    estimate: ClassVar[EstimateKind] = "flow_map"

    def __init__(
        self,
        time_sampler: TimeSampler,
        *,
        instant_share: float = 0.5,
        end_share: float = 0.1,
        weight: AdaptiveWeight = PLAIN,
        cross_entropy_weight: float = 0.0,
        fisher_weight: float = 0.0,
    ) -> None:
        super().__init__(weight=weight, cross_entropy_weight=cross_entropy_weight, fisher_weight=fisher_weight)
        self.time_sampler = time_sampler
        self.pairs = TimePairs(time_sampler, instant_share=instant_share, end_share=end_share)

    @property
    @abstractmethod
    def jump_passes(self) -> float:
        """Passes of an example with s > t, its backward pass included."""
        ...

    @abstractmethod
    def jump_regression(self, model: FlowModel, jumps: Jumps) -> Regression:
        """What is regressed on the pairs with s > t."""
        ...

    @property
    def passes_per_step(self) -> float:
        """Three of flow matching and those of the jumps by their shares, and those of the terminal term."""
        instant = self.pairs.instant_share
        return 3 * instant + self.jump_passes * (1 - instant) + self.terminal_passes

    def regressions(self, model: FlowModel, draw: Draw, teacher: FlowModel | None) -> Sequence[Regression]:
        """The pairs with s = t first, then the jumps."""
        require_two_times(self, model)
        count = len(draw.x_1)
        t, s = self.pairs.sample(count, draw.generator, draw.x_1.device)
        first = self.pairs.instant(count)
        parts = []
        if first > 0:
            parts.append(instant_regression(model, draw, slice(0, first), t[:first]))
        if first < count:
            rows = slice(first, count)
            part = draw.rows(rows)
            x_t = model.path.sample(part.x_1, part.x_0, t[rows])
            parts.append(self.jump_regression(model, Jumps(rows, part, x_t, t[rows], s[rows])))
        return parts


def instant_regression(model: FlowModel, draw: Draw, rows: slice, t: Tensor) -> Regression:
    """Flow matching (arXiv:2210.02747, eq. 14) by a network of two times, of the examples ``rows`` at s = ``t`` (B',).

    As nothing is jumped over, no derivative is needed, and errors are taken of the network's own output.
    """
    part = draw.rows(rows)
    x_t = model.path.sample(part.x_1, part.x_0, t)
    value = model.predict(x_t, t, t, mask=part.mask).value
    target = part.x_1 if model.prediction == "x1" else model.path.velocity(part.x_1, part.x_0, t)
    return Regression(rows, x_t, t, value, target)
