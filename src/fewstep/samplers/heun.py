"""The second-order solver: the mean of the predictions at both ends of the step."""

from torch import Tensor

from fewstep.paths import Path
from fewstep.samplers.euler import EulerSolver
from fewstep.samplers.solvers import SolverStep
from fewstep.types import FlowLike


class HeunSolver:
    """x_s = x_t + (alpha_s - alpha_t) (x_1 + x_1') / 2 + (sigma_s - sigma_t) (eps + eps') / 2.

    (x_1, eps) is the pair at (x_t, t), (x_1', eps') the one at the Euler step's end. On the linear path this is Heun's
    x_t + (s - t) (v + v') / 2; on any path it is the trapezoidal rule for the integrals of
    :mod:`fewstep.samplers.solvers`, of order 2. One evaluation of its own; none where s = 1, since eps' does not exist
    there: that step is Euler's, so K steps cost 2 K - 1 evaluations.
    """

    def __init__(self) -> None:
        self._predictor = EulerSolver()

    def step(
        self,
        model: FlowLike,
        path: Path,
        x_t: Tensor,
        x1_hat: Tensor,
        t: Tensor,
        s: Tensor,
        *,
        mask: Tensor | None = None,
    ) -> SolverStep:
        """See :class:`fewstep.samplers.solvers.Solver`."""
        euler = self._predictor.step(model, path, x_t, x1_hat, t, s, mask=mask)
        if bool((s >= 1).all()):
            return euler
        x1_end = model.denoise(euler.x_s, s.to(t.dtype), mask=mask, self_cond=x1_hat)
        eps_mean = (path.eps_from_x1(x_t, x1_hat, t) + path.eps_from_x1(euler.x_s, x1_end, s)) / 2
        alpha_t, sigma_t = path.alpha_sigma(t, x_t)
        alpha_s, sigma_s = path.alpha_sigma(s, x_t)
        x_s = x_t + (alpha_s - alpha_t) * (x1_hat + x1_end) / 2 + (sigma_s - sigma_t) * eps_mean
        return SolverStep(x_s, x1_end, evaluations=1)
