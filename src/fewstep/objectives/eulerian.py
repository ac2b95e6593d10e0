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

from torch import Tensor

from fewstep.denoisers import FlowModel
from fewstep.objectives.derivative import Derivative, total_derivative


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
