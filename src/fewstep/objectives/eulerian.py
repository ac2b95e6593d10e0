"""The Eulerian equation of a flow map: X(t, s) ends at the same point from wherever on a trajectory it starts.

Along the flow, d/dt X(t, s)(x_t) = 0. With X(t, s) = (sigma_s / sigma_t) x_t + (alpha_s - alpha_t sigma_s / sigma_t) F
and F(x_t, t, s) the estimate, this is

    (sigma_s / sigma_t) (F_v - F) + ((alpha_s sigma_t - alpha_t sigma_s) / Delta_t) dF/dt = 0,
    Delta_t = alpha'_t sigma_t - alpha_t sigma'_t,

F_v being the clean estimate of the velocity v that x_t moves with, and dF/dt = F_x v + F_t. On the linear path it is
the mean-flow identity u = v + (s - t) du/dt (arXiv:2505.13447, eq. 6, with time reversed), at s = 1 the one of
continuous-time consistency models (arXiv:2410.11081). In this form it holds on every path and for s = 1, where nothing
is divided by sigma_s. B batch, K positions, D latent dimension.
"""

from abc import abstractmethod
from typing import ClassVar

from torch import Tensor

from fewstep.denoisers import FlowModel
from fewstep.objectives.derivative import Derivative, ForwardMode, total_derivative
from fewstep.objectives.few_step import PLAIN, Regression, prediction_from_x1
from fewstep.objectives.flow_map import FlowMapObjective, Jumps
from fewstep.objectives.weights import AdaptiveWeight
from fewstep.schedules import TimeSampler


def eulerian_terms(
    model: FlowModel, x_t: Tensor, t: Tensor, s: Tensor, pulled: Tensor, change: Tensor
) -> tuple[Tensor, Tensor]:
    """Both terms of the equation (B, K, D), for ``pulled`` = F_v - F and ``change`` = dF/dt, times (B,) with t < 1."""
    (alpha_t, sigma_t), (alpha_s, sigma_s) = (model.path.alpha_sigma(time, x_t) for time in (t, s))
    d_alpha, d_sigma = model.path.d_alpha_sigma(t, x_t)
    determinant = d_alpha * sigma_t - alpha_t * d_sigma
    return sigma_s / sigma_t * pulled, (alpha_s * sigma_t - alpha_t * sigma_s) / determinant * change


def estimate_and_change(
    model: FlowModel, derivative: Derivative, x_t: Tensor, velocity: Tensor, t: Tensor, s: Tensor | None, mask: Tensor
) -> tuple[Tensor, Tensor]:
    """F(x_t, t, s) with its gradient and dF/dt along ``velocity`` (B, K, D) without one, (B, K, D) each."""

    def estimate(x: Tensor, time: Tensor, end: Tensor | None) -> Tensor:
        return model.denoise(x, time, s=end, mask=mask)

    value, change = total_derivative(derivative, estimate, x_t, velocity, t, s)
    return value, change.detach()


class EulerianObjective(FlowMapObjective):
    """Base of the flow maps whose target is where the equation would hold,

        F_target = F + (sigma_s / sigma_t) (F_v - F) + ((alpha_s sigma_t - alpha_t sigma_s) / Delta_t) dF/dt,

    without gradient; a subclass says by its ``direction`` along which velocity. ``derivative`` is forward mode by
    default. ``from_data`` tells whether the readout's terms aim at the data's own tokens.
    """

    from_data: ClassVar[bool] = True

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

    @abstractmethod
    def direction(self, model: FlowModel, jumps: Jumps) -> tuple[Tensor, Tensor]:
        """The velocity v that x_t moves with, and its clean estimate F_v, (B', K, D) each, without gradient."""
        ...

    def jump_regression(self, model: FlowModel, jumps: Jumps) -> Regression:
        """The estimate on its target."""
        x_t, t, s = jumps.x_t, jumps.t, jumps.s
        velocity, now = self.direction(model, jumps)
        estimate, change = estimate_and_change(model, self.derivative, x_t, velocity, t, s, jumps.draw.mask)
        pull, drift = eulerian_terms(model, x_t, t, s, now - estimate.detach(), change)
        target = estimate.detach() + pull + drift
        prediction, aim = (prediction_from_x1(model, value, x_t, t) for value in (estimate, target))
        return Regression(jumps.rows, x_t, t, prediction, aim.detach(), from_data=self.from_data)
