"""Mean flow: the average velocity of a jump, learnt from data alone. B batch, K positions, D latent dimension."""

from fewstep.denoisers import FlowModel
from fewstep.objectives.derivative import Derivative, ForwardMode
from fewstep.objectives.eulerian import estimate_and_change, eulerian_terms
from fewstep.objectives.few_step import PLAIN, Regression, prediction_from_x1
from fewstep.objectives.flow_map import FlowMapObjective, Jumps
from fewstep.objectives.weights import AdaptiveWeight
from fewstep.schedules import TimeSampler


class MeanFlow(FlowMapObjective):
    """arXiv:2505.13447, eq. 9 to 11, on any path: the estimate is pulled to where the Eulerian equation would hold,

        F_target = F + (sigma_s / sigma_t) (x_1 - F) + ((alpha_s sigma_t - alpha_t sigma_s) / Delta_t) dF/dt,

    with the conditional velocity alpha' x_1 + sigma' x_0 as direction of the derivative
    (:mod:`fewstep.objectives.eulerian`). At s = t both factors, 1 and 0, leave x_1: this is flow matching, and done
    without a derivative. Half of the pairs are such by default (``instant_share``), a tenth ends at s = 1
    (``end_share``). ``derivative`` is forward mode by default. The network must have two times: ``ValueError``
    otherwise.
    """

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
        super().__init__(
            time_sampler,
            instant_share=instant_share,
            end_share=end_share,
            weight=weight,
            cross_entropy_weight=cross_entropy_weight,
            fisher_weight=fisher_weight,
        )
        self.derivative = ForwardMode() if derivative is None else derivative

    @property
    def jump_passes(self) -> float:
        """Three of the pass with its gradient, and the derivative's."""
        return 3 + self.derivative.passes

    def jump_regression(self, model: FlowModel, jumps: Jumps) -> Regression:
        """The identity of mean flow, its target without gradient."""
        draw, x_t, t, s = jumps.draw, jumps.x_t, jumps.t, jumps.s
        velocity = model.path.velocity(draw.x_1, draw.x_0, t)
        estimate, change = estimate_and_change(model, self.derivative, x_t, velocity, t, s, draw.mask)
        pull, drift = eulerian_terms(model, x_t, t, s, draw.x_1 - estimate.detach(), change)
        target = estimate.detach() + pull + drift
        prediction, aim = (prediction_from_x1(model, value, x_t, t) for value in (estimate, target))
        return Regression(jumps.rows, x_t, t, prediction, aim.detach())
