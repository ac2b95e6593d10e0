"""Mean flow: the average velocity of a jump, learnt from data alone. B batch, K positions, D latent dimension."""

from collections.abc import Sequence
from typing import ClassVar

from fewstep.denoisers import EstimateKind, FlowModel
from fewstep.objectives.derivative import Derivative, ForwardMode
from fewstep.objectives.eulerian import estimate_and_change, eulerian_terms
from fewstep.objectives.few_step import PLAIN, Draw, FewStepObjective, Regression, prediction_from_x1
from fewstep.objectives.time_pairs import TimePairs
from fewstep.objectives.weights import AdaptiveWeight
from fewstep.schedules import TimeSampler


class MeanFlow(FewStepObjective):
    """arXiv:2505.13447, eq. 9 to 11, on any path: the estimate is pulled to where the Eulerian equation would hold,

        F_target = F + (sigma_s / sigma_t) (x_1 - F) + ((alpha_s sigma_t - alpha_t sigma_s) / Delta_t) dF/dt,

    with the conditional velocity alpha' x_1 + sigma' x_0 as direction of the derivative (:mod:`fewstep.objectives.eulerian`).
    At s = t this is flow matching. Half of the pairs are such by default (``instant_share``), a tenth ends at s = 1. The network must
    have two times: ``ValueError`` otherwise.
    """

    estimate: ClassVar[EstimateKind] = "flow_map"

    def __init__(
        self,
        time_sampler: TimeSampler,
        *,
        instant_share: float = 0.5,
        end_share: float = 0.1,
        derivative: Derivative | None = None,
        weight: AdaptiveWeight = PLAIN,
        cross_entropy_weight: float = 0.0,
        fisher_weight: float = 0.0,
    ) -> None:
        super().__init__(weight=weight, cross_entropy_weight=cross_entropy_weight, fisher_weight=fisher_weight)
        self.time_sampler = time_sampler
        self.pairs = TimePairs(time_sampler, instant_share=instant_share, end_share=end_share)
        self.derivative = ForwardMode() if derivative is None else derivative

    @property
    def passes_per_step(self) -> float:
        """Three of the pass with its gradient, and the derivative's of the pairs with s > t."""
        return 3 + (1 - self.pairs.instant_share) * self.derivative.passes

    def regressions(self, model: FlowModel, draw: Draw, teacher: FlowModel | None) -> Sequence[Regression]:
        """The instant pairs without a derivative, then the others."""
        require_two_times(self, model)
        t, s = self.pairs.sample(len(draw.x_1), draw.generator, draw.x_1.device)
        x_t = model.path.sample(draw.x_1, draw.x_0, t)
        first = self.pairs.instant(len(t))
        parts = []
        for rows in (slice(0, first), slice(first, len(t))):
            if rows.start == rows.stop:
                continue
            part, at, end, state = draw.rows(rows), t[rows], s[rows], x_t[rows]
            if rows.start == 0:
                estimate, target = model.denoise(state, at, s=end, mask=part.mask), part.x_1
            else:
                velocity = model.path.velocity(part.x_1, part.x_0, at)
                estimate, change = estimate_and_change(model, self.derivative, state, velocity, at, end, part.mask)
                pull, drift = eulerian_terms(model, state, at, end, part.x_1 - estimate.detach(), change)
                target = estimate.detach() + pull + drift
            prediction, aim = (prediction_from_x1(model, value, state, at) for value in (estimate, target))
            parts.append(Regression(rows, state, at, prediction, aim.detach()))
        return parts


def require_two_times(objective: FewStepObjective, model: FlowModel) -> None:
    """Raise ``ValueError`` unless the network is told where a jump ends."""
    if not model.two_times:
        raise ValueError(f"{type(objective).__name__} needs a denoiser of two times: build it with two_times=True")
