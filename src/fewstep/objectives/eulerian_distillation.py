"""Eulerian self-distillation: mean flow along the model's own velocity. B batch, K positions, D latent dimension."""

import torch

from fewstep.denoisers import FlowModel
from fewstep.objectives.derivative import Derivative, ForwardMode
from fewstep.objectives.eulerian import estimate_and_change, eulerian_terms
from fewstep.objectives.few_step import PLAIN, Regression, prediction_from_x1
from fewstep.objectives.flow_map import FlowMapObjective, Jumps
from fewstep.objectives.weights import AdaptiveWeight
from fewstep.schedules import TimeSampler


class EulerianSelfDistillation(FlowMapObjective):
    """arXiv:2505.18825, Eulerian self-distillation, on any path: d/dt X(t, s)(x_t) = 0 along the model's own velocity,

        F_target = F + (sigma_s / sigma_t) (F_v - F) + ((alpha_s sigma_t - alpha_t sigma_s) / Delta_t) dF/dt,

    F_v = F(x_t, t, t) being the model's estimate of the flow, which the pairs with s = t learn
    (:mod:`fewstep.objectives.eulerian`). Where mean flow takes the velocity of one pair of data and noise, this takes
    their mean as far as it is known: a quieter target that is biased until the flow is learnt. The whole target is
    without gradient, as that of mean flow. Other settings as :class:`MeanFlow`; ``ValueError`` for a network of one
    time.
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
        """Three of the pass with its gradient, the derivative's, and one for the velocity."""
        return 4 + self.derivative.passes

    def jump_regression(self, model: FlowModel, jumps: Jumps) -> Regression:
        """The Eulerian equation; the readout's tokens at the target stand in for the data's, which it does not use."""
        draw, x_t, t, s = jumps.draw, jumps.x_t, jumps.t, jumps.s
        with torch.no_grad():
            now = model.denoise(x_t, t, s=t, mask=draw.mask)
            velocity = model.velocity_of(x_t, now, t) * draw.mask[..., None]
        estimate, change = estimate_and_change(model, self.derivative, x_t, velocity, t, s, draw.mask)
        pull, drift = eulerian_terms(model, x_t, t, s, now - estimate.detach(), change)
        target = estimate.detach() + pull + drift
        prediction, aim = (prediction_from_x1(model, value, x_t, t) for value in (estimate, target))
        return Regression(jumps.rows, x_t, t, prediction, aim.detach(), from_data=False)
