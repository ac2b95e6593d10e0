"""The path between noise and data, and every conversion between x_1, eps and velocity.

x_t = alpha_t x_1 + sigma_t x_0 and v = alpha'_t x_1 + sigma'_t x_0, where x_0 is the noise, called eps when it is an
estimate. Two of (x_t, x_1, eps, v) give the other two by linear algebra (arXiv:2210.02747, arXiv:2303.08797).

B batch; states are (B, ...), times (B,). Results are float32, or float64 for float64 states. ``eps_from_x1`` and
``velocity_from_x1`` divide by sigma and are singular at t = 1, where x_t holds no noise. There the divisor is held at
``MIN_DIVISOR``: for consistent inputs the numerator vanishes too and eps is 0. The samplers never convert there.
"""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from fewstep.schedules import LINEAR, VARIANCE_PRESERVING, Schedule, upcast
from fewstep.shapes import expand_like

MIN_DIVISOR = 1e-5
"""Floor of sigma as a divisor. It binds only within 1e-5 of t = 1."""


class Path:
    """A schedule applied to states."""

    def __init__(self, schedule: Schedule) -> None:
        self.schedule = schedule

    def alpha_sigma(self, t: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """alpha and sigma at ``t`` (B,), each (B, 1, ...) to multiply ``x`` (B, ...), in its dtype, >= float32."""
        return self._fit(self.schedule.alpha, t, x), self._fit(self.schedule.sigma, t, x)

    def d_alpha_sigma(self, t: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """Time derivatives of alpha and sigma at ``t`` (B,), shaped like those of :meth:`alpha_sigma`."""
        return self._fit(self.schedule.d_alpha, t, x), self._fit(self.schedule.d_sigma, t, x)

    @staticmethod
    def _fit(function: Callable[[Tensor], Tensor], t: Tensor, x: Tensor) -> Tensor:
        # The schedule is evaluated in the finer of both dtypes: float32 times are exact numbers in float64 tests.
        weight = function(t.to(torch.promote_types(t.dtype, x.dtype)))
        return expand_like(weight, x).to(torch.promote_types(x.dtype, torch.float32))

    def sample(self, x_1: Tensor, x_0: Tensor, t: Tensor) -> Tensor:
        """x_t (B, ...) = alpha_t x_1 + sigma_t x_0 for data ``x_1`` and noise ``x_0`` (B, ...) at ``t`` (B,)."""
        alpha, sigma = self.alpha_sigma(t, x_1)
        return alpha * upcast(x_1) + sigma * upcast(x_0)

    def velocity(self, x_1: Tensor, x_0: Tensor, t: Tensor) -> Tensor:
        """v (B, ...) = alpha'_t x_1 + sigma'_t x_0, the time derivative of :meth:`sample`."""
        d_alpha, d_sigma = self.d_alpha_sigma(t, x_1)
        return d_alpha * upcast(x_1) + d_sigma * upcast(x_0)

    def eps_from_x1(self, x_t: Tensor, x_1: Tensor, t: Tensor) -> Tensor:
        """eps (B, ...) = (x_t - alpha_t x_1) / sigma_t. Singular at t = 1 (see the module)."""
        alpha, sigma = self.alpha_sigma(t, x_t)
        return (upcast(x_t) - alpha * upcast(x_1)) / sigma.clamp(min=MIN_DIVISOR)

    def velocity_from_x1(self, x_t: Tensor, x_1: Tensor, t: Tensor) -> Tensor:
        """v (B, ...) that belongs to ``x_1`` at (x_t, t). Singular at t = 1 (see the module)."""
        return self.velocity(x_1, self.eps_from_x1(x_t, x_1, t), t)

    def x1_from_velocity(self, x_t: Tensor, v: Tensor, t: Tensor) -> Tensor:
        """x_1 (B, ...) = (sigma_t v - sigma'_t x_t) / (alpha'_t sigma_t - alpha_t sigma'_t), regular everywhere."""
        alpha, sigma = self.alpha_sigma(t, x_t)
        d_alpha, d_sigma = self.d_alpha_sigma(t, x_t)
        return (sigma * upcast(v) - d_sigma * upcast(x_t)) / (d_alpha * sigma - alpha * d_sigma)


def linear_path() -> Path:
    """The straight path, alpha = t and sigma = 1 - t."""
    return Path(LINEAR)


def variance_preserving_path() -> Path:
    """The trigonometric path, alpha = sin(pi t / 2) and sigma = cos(pi t / 2)."""
    return Path(VARIANCE_PRESERVING)


PathName = Literal["linear", "variance_preserving"]

PATHS: dict[str, Callable[[], Path]] = {"linear": linear_path, "variance_preserving": variance_preserving_path}
"""The paths by their names in saved models and settings."""
