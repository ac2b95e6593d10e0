"""The first-order solver: the prediction is held over the step."""

from torch import Tensor

from fewstep.paths import Path
from fewstep.samplers.solvers import SolverStep
from fewstep.types import FlowLike


class EulerSolver:
    """x_s = alpha_s x1_hat + sigma_s eps_hat with eps_hat = (x_t - alpha_t x1_hat) / sigma_t.

    On the linear path this equals x_t + (s - t) v, the Euler step of the ODE. On the variance-preserving path it is
    DDIM (arXiv:2010.02502 eq. 12, eta = 0): also of order 1, but exact for a constant prediction, where x_t + (s - t) v
    would leave the circle alpha^2 + sigma^2 = 1. No evaluation of its own.
    """

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
        """See :class:`fewstep.samplers.solvers.Solver`; ``model`` and ``mask`` are not used."""
        eps_hat = path.eps_from_x1(x_t, x1_hat, t)
        return SolverStep(path.sample(x1_hat, eps_hat, s), x1_hat, evaluations=0)
