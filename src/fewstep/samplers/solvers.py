"""What a solver is: the deterministic part of a sampler's step.

Along the flow, x' = alpha' x_1 + sigma' eps with the model's (x_1, eps) at each time, so that exactly

    x_s - x_t = integral of x_1 d(alpha) + integral of eps d(sigma)        from t to s.

The solvers approximate x_1 and eps in these integrals and take d(alpha), d(sigma) as they are (this project's
definition). A constant pair (x_1, eps) is therefore followed without error on every path, which is what makes
re-injection keep the path's variance. On the linear path d(alpha) = dt = -d(sigma): the rules are the textbook ones.
"""

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from fewstep.paths import Path
from fewstep.types import FlowLike


@dataclass(frozen=True)
class SolverStep:
    """``x_s`` (B, K, D) where the step ended, ``x1_hat`` (B, K, D) the latest prediction made on the way, and
    ``evaluations``, how often the solver called the model itself."""

    x_s: Tensor
    x1_hat: Tensor
    evaluations: int


class Solver(Protocol):
    """Moves a state along the flow."""

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
        """From ``x_t`` (B, K, D) at ``t`` (B,) < 1 to ``s`` (B,) >= t, given ``x1_hat`` (B, K, D), the prediction at
        (x_t, t). All of a batch shares one t and one s; ``mask`` (B, K) is handed to the model. At s = 1 the result
        is exactly ``x1_hat``."""
        ...
