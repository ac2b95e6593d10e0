"""Lagrangian self-distillation: where a jump ends moves with the flow. B batch, K positions, D latent dimension."""

import torch
from torch import Tensor

from fewstep.denoisers import FlowModel
from fewstep.objectives.derivative import Derivative, ForwardMode
from fewstep.objectives.few_step import PLAIN, Regression
from fewstep.objectives.flow_map import FlowMapObjective, Jumps
from fewstep.objectives.weights import AdaptiveWeight
from fewstep.schedules import TimeSampler


class LagrangianSelfDistillation(FlowMapObjective):
    """arXiv:2505.18825, Lagrangian self-distillation, on any path: dX/ds(t, s) = v_s(X(t, s)), where v is the model's
    own velocity, which the pairs with s = t learn.

    With X = X(t, s) and F the estimate the equation is, in the clean estimates of a network that predicts x_1,

        F + (sigma_s (alpha_s sigma_t - alpha_t sigma_s) / (sigma_t Delta_s)) dF/ds = F(X, s, s),

    Delta_s = alpha'_s sigma_s - alpha_s sigma'_s, and for one that predicts velocity dX/ds itself, Delta_s / sigma_s
    times as much. Nothing is divided by sigma_s, and the derivative is in s alone, not in space. The gradient goes
    through it, while the right side is a target; ``target_gradient`` lets it go through that side too, as the plain
    residual of the paper has it.

    At s = 1 the equation reads F = F(F, 1, 1), which every F fulfils where the data are left alone: it says nothing
    there, and for a network that predicts x_1 its target lets the map drift. So no pair ends at s = 1 by default
    (``end_share``); such jumps follow by continuity. Other settings as :class:`MeanFlow`; ``ValueError`` for a network
    of one time.
    """

    def __init__(
        self,
        time_sampler: TimeSampler,
        *,
        instant_share: float = 0.5,
        end_share: float = 0.0,
        target_gradient: bool = False,
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
        self.target_gradient = target_gradient
        self.derivative = ForwardMode() if derivative is None else derivative

    @property
    def jump_passes(self) -> float:
        """Three of value and derivative each, for the gradient goes through both, and those of the right side."""
        return 3 * (1 + self.derivative.passes) + (3 if self.target_gradient else 1)

    def jump_regression(self, model: FlowModel, jumps: Jumps) -> Regression:
        """Both sides at (X(t, s), s); the readout's tokens there stand in for the data's, which they do not use."""
        x_t, t, s, mask = jumps.x_t, jumps.t, jumps.s, jumps.draw.mask

        def estimate(end: Tensor) -> Tensor:
            return model.denoise(x_t, t, s=end, mask=mask)

        value, change = self.derivative(estimate, (s,), (torch.ones_like(s),))
        state, moved = end_and_change(model, x_t, t, s, value, change)
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.target_gradient):
            start = state if self.target_gradient else state.detach()
            target = model.predict(start * mask[..., None], s, s, mask=mask).value
        return Regression(jumps.rows, state.detach(), s, moved, target, from_data=False)


def end_and_change(
    model: FlowModel, x_t: Tensor, t: Tensor, s: Tensor, estimate: Tensor, change: Tensor
) -> tuple[Tensor, Tensor]:
    """X(t, s), and dX/ds as an output of the network at (X, s), for an estimate F and ``change`` = dF/ds, (B, K, D).

    As velocity it is (sigma'_s x_t + (alpha'_s sigma_t - alpha_t sigma'_s) F + reach dF/ds) / sigma_t with reach =
    alpha_s sigma_t - alpha_t sigma_s, as clean estimate F + (sigma_s reach / (sigma_t Delta_s)) dF/ds. t < 1.
    """
    (alpha_t, sigma_t), (alpha_s, sigma_s) = (model.path.alpha_sigma(time, x_t) for time in (t, s))
    d_alpha, d_sigma = model.path.d_alpha_sigma(s, x_t)
    reach = (alpha_s * sigma_t - alpha_t * sigma_s) / sigma_t
    state = sigma_s / sigma_t * x_t + reach * estimate
    if model.prediction == "x1":
        return state, estimate + sigma_s / (d_alpha * sigma_s - alpha_s * d_sigma) * reach * change
    drawn = (d_sigma * x_t + (d_alpha * sigma_t - alpha_t * d_sigma) * estimate) / sigma_t
    return state, drawn + reach * change
