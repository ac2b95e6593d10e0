"""Schedules alpha(t), sigma(t) of a path, time grids for sampling, time samplers for training.

Time runs from t = 0 (noise) to t = 1 (data); x_t = alpha(t) x_1 + sigma(t) x_0. Legend: B batch, N steps.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


def upcast(x: Tensor) -> Tensor:
    """Floating point tensors of any shape in at least float32: half types are widened, float64 stays float64."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


@dataclass(frozen=True)
class Schedule:
    """Weights of data and noise on a path, their time derivatives, and the time at which the noise weight is sigma.

    All keep shapes and float64, half types become float32. The ends are exact: alpha(0) = sigma(1) = 0 and
    alpha(1) = sigma(0) = 1.
    """

    alpha: Callable[[Tensor], Tensor]
    sigma: Callable[[Tensor], Tensor]
    d_alpha: Callable[[Tensor], Tensor]
    d_sigma: Callable[[Tensor], Tensor]
    t_of_sigma: Callable[[Tensor], Tensor]


LINEAR = Schedule(
    alpha=upcast,
    sigma=lambda t: 1 - upcast(t),
    d_alpha=lambda t: torch.ones_like(upcast(t)),
    d_sigma=lambda t: -torch.ones_like(upcast(t)),
    t_of_sigma=lambda sigma: 1 - upcast(sigma),
)
"""Conditional optimal transport: alpha = t, sigma = 1 - t (arXiv:2210.02747 eq. 20 with sigma_min = 0)."""


def _sine(t: Tensor) -> Tensor:
    return torch.sin(math.pi / 2 * upcast(t))


def _cosine(t: Tensor) -> Tensor:
    # Exactly 0 at t = 1 and accurate near it; the plain cosine in float32 is -4e-8 there.
    return torch.sin(math.pi / 2 * (1 - upcast(t)))


VARIANCE_PRESERVING = Schedule(
    alpha=_sine,
    sigma=_cosine,
    d_alpha=lambda t: math.pi / 2 * _cosine(t),
    d_sigma=lambda t: -math.pi / 2 * _sine(t),
    t_of_sigma=lambda sigma: 1 - 2 / math.pi * torch.asin(upcast(sigma)),
)
"""Trigonometric: alpha = sin(pi t / 2), sigma = cos(pi t / 2), so alpha^2 + sigma^2 = 1 (arXiv:2303.08797)."""


class TimeGrid(Protocol):
    """Times of a sampler's steps."""

    def times(self, num_steps: int) -> Tensor:
        """Times (N+1,) float32 from exactly 0 to exactly 1, strictly increasing, for ``num_steps`` = N >= 1."""
        ...


class UniformGrid:
    """Equal steps, t_k = k / N."""

    def times(self, num_steps: int) -> Tensor:
        """Times (N+1,) float32; ``ValueError`` if float32 cannot separate them."""
        if num_steps < 1:
            raise ValueError(f"num_steps is {num_steps}: a sampler needs at least 1 step; pass num_steps >= 1")
        times = self._quantiles(torch.arange(num_steps + 1, dtype=torch.float64) / num_steps).float()
        times[0], times[-1] = 0.0, 1.0
        if not bool((times.diff() > 0).all()):
            remedy = "use fewer steps or a grid that crowds its ends less"
            raise ValueError(f"num_steps is {num_steps}: times of this grid coincide in float32; {remedy}")
        return times

    def _quantiles(self, u: Tensor) -> Tensor:
        return u


class _LogitNormal:
    """The logit-normal distribution on (0, 1) by its quantiles."""

    def __init__(self, mean: float, std: float) -> None:
        if not (math.isfinite(mean) and math.isfinite(std) and std > 0):
            raise ValueError(f"mean is {mean} and std is {std}: the logit-normal needs finite ones, std above 0")
        self.mean, self.std = mean, std

    def _quantiles(self, u: Tensor) -> Tensor:
        return torch.sigmoid(self.mean + self.std * torch.special.ndtri(u))


class LogitNormalGrid(_LogitNormal, UniformGrid):
    """Quantiles of the logit-normal: t_k = sigmoid(mean + std Phi^-1(k / N)), with exact ends 0 and 1.

    With the ``mean`` and ``std`` of :class:`LogitNormalTime` every step covers an equal share of the training times
    (density of arXiv:2403.03206 eq. 19). The two outer steps shrink more slowly than 1 / N (at the default 0.10 for
    N = 64, 0.07 for N = 256), so a solver's error falls with the square of theirs, not of 1 / N: a grid for few steps.
    """

    def __init__(self, mean: float = 0.0, std: float = 1.0) -> None:
        super().__init__(mean, std)


class TimeSampler(Protocol):
    """Training times."""

    def sample(self, batch_size: int, generator: torch.Generator, device: torch.device | str = "cpu") -> Tensor:
        """Times (B,) float32 in the open interval (0, 1). The generator is the only state."""
        ...


class UniformTime:
    """t uniform on (0, 1). ``stratified`` spreads each batch evenly, which lowers the variance of the loss.

    After arXiv:2107.00630 appendix I.1, with independent jitter in each bin instead of a common shift.
    """

    def __init__(self, stratified: bool = True) -> None:
        self.stratified = stratified

    def sample(self, batch_size: int, generator: torch.Generator, device: torch.device | str = "cpu") -> Tensor:
        """Times (B,) float32 in (0, 1)."""
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}: expected at least 1")
        u = torch.rand(batch_size, generator=generator, device=generator.device, dtype=torch.float64)
        if self.stratified:  # one number per bin of B equal bins, in random order: each entry alone is still uniform
            u = (torch.randperm(batch_size, generator=generator, device=generator.device) + u) / batch_size
        # Off the ends, where conversions between x_1, eps and v are singular.
        return self._quantiles(u).float().clamp(2.0**-24, 1 - 2.0**-24).to(device)

    def _quantiles(self, u: Tensor) -> Tensor:
        return u


class LogitNormalTime(_LogitNormal, UniformTime):
    """t = sigmoid(mean + std n) with n standard normal (arXiv:2403.03206 eq. 19), drawn by inverting its quantiles.

    ``stratified`` as in :class:`UniformTime`.
    """

    def __init__(self, mean: float = 0.0, std: float = 1.0, stratified: bool = True) -> None:
        super().__init__(mean, std)
        self.stratified = stratified


def grid_of(time_sampler: TimeSampler) -> TimeGrid:
    """The grid whose steps cover equal shares of ``time_sampler``'s times: a sampler's default after that training.

    An objective that trains certain steps trains those of this grid. The grid of m N steps contains that of N.
    """
    if isinstance(time_sampler, LogitNormalTime):
        return LogitNormalGrid(time_sampler.mean, time_sampler.std)
    return UniformGrid()
