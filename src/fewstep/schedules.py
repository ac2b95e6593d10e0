"""Schedules alpha(t), sigma(t) of a path, time grids for sampling, time samplers for training.

Time runs from t = 0 (noise) to t = 1 (data); x_t = alpha(t) x_1 + sigma(t) x_0. Legend: B batch, N steps.
"""

import math
from typing import Protocol

import torch
from torch import Tensor


def upcast(x: Tensor) -> Tensor:
    """Floating point tensors of any shape in at least float32: half types are widened, float64 stays float64."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


class Schedule(Protocol):
    """Weights of data and noise on a path, and their time derivatives.

    Every function maps a tensor of any shape to one of that shape, float64 to float64, half types to float32.
    The ends are exact: alpha(0) = sigma(1) = 0 and alpha(1) = sigma(0) = 1.
    """

    def alpha(self, t: Tensor) -> Tensor:
        """Weight of the data x_1 at ``t`` in [0, 1]."""
        ...

    def sigma(self, t: Tensor) -> Tensor:
        """Weight of the noise x_0 at ``t`` in [0, 1]."""
        ...

    def d_alpha(self, t: Tensor) -> Tensor:
        """Time derivative of alpha."""
        ...

    def d_sigma(self, t: Tensor) -> Tensor:
        """Time derivative of sigma."""
        ...

    def t_of_sigma(self, sigma: Tensor) -> Tensor:
        """The time at which the noise weight is ``sigma`` in [0, 1]."""
        ...


class LinearSchedule(Schedule):
    """Conditional optimal transport: alpha = t, sigma = 1 - t (arXiv:2210.02747 eq. 20 with sigma_min = 0)."""

    def alpha(self, t: Tensor) -> Tensor:
        return upcast(t)

    def sigma(self, t: Tensor) -> Tensor:
        return 1 - upcast(t)

    def d_alpha(self, t: Tensor) -> Tensor:
        return torch.ones_like(upcast(t))

    def d_sigma(self, t: Tensor) -> Tensor:
        return -torch.ones_like(upcast(t))

    def t_of_sigma(self, sigma: Tensor) -> Tensor:
        return 1 - upcast(sigma)


class VariancePreservingSchedule(Schedule):
    """Trigonometric path: alpha = sin(pi t / 2), sigma = cos(pi t / 2) (arXiv:2303.08797, trigonometric interpolant).

    alpha^2 + sigma^2 = 1. The cosine is taken as sin(pi (1 - t) / 2), which is exactly 0 at t = 1 and keeps its
    relative accuracy near it; the plain cosine in float32 is -4e-8 there.
    """

    def alpha(self, t: Tensor) -> Tensor:
        return torch.sin(math.pi / 2 * upcast(t))

    def sigma(self, t: Tensor) -> Tensor:
        return torch.sin(math.pi / 2 * (1 - upcast(t)))

    def d_alpha(self, t: Tensor) -> Tensor:
        return math.pi / 2 * self.sigma(t)

    def d_sigma(self, t: Tensor) -> Tensor:
        return -math.pi / 2 * self.alpha(t)

    def t_of_sigma(self, sigma: Tensor) -> Tensor:
        return 1 - 2 / math.pi * torch.asin(upcast(sigma))


class TimeGrid(Protocol):
    """Times of a sampler's steps."""

    def times(self, num_steps: int) -> Tensor:
        """Times (N+1,) float32 from exactly 0 to exactly 1, strictly increasing, for ``num_steps`` = N >= 1.

        Raises ``ValueError`` if float32 cannot separate them.
        """
        ...


def _fractions(num_steps: int) -> Tensor:
    """k / N for k = 0..N, (N+1,) float64."""
    if num_steps < 1:
        raise ValueError(f"num_steps is {num_steps}: a sampler needs at least 1 step; pass num_steps >= 1")
    return torch.arange(num_steps + 1, dtype=torch.float64) / num_steps


def _as_grid(times: Tensor) -> Tensor:
    """``times`` (N+1,) float64 with exact ends, rounded to float32; ``ValueError`` for repeated times."""
    times = times.clone()
    times[0], times[-1] = 0.0, 1.0
    rounded = times.float()
    if not bool((rounded.diff() > 0).all()):
        raise ValueError(
            f"num_steps is {len(times) - 1}: neighbouring times of this grid coincide in float32;"
            " use fewer steps or a grid that crowds its ends less"
        )
    return rounded


class UniformGrid(TimeGrid):
    """Equal steps, t_k = k / N."""

    def times(self, num_steps: int) -> Tensor:
        return _as_grid(_fractions(num_steps))


def _check_logit_normal(mean: float, std: float) -> None:
    if not math.isfinite(mean):
        raise ValueError(f"mean is {mean}: the logit-normal needs a finite mean.")
    if not (math.isfinite(std) and std > 0):
        raise ValueError(f"std is {std}: the logit-normal needs a finite standard deviation above 0.")


class LogitNormalGrid(TimeGrid):
    """Quantiles of the logit-normal: t_k = sigmoid(mean + std Phi^-1(k / N)), with exact ends 0 and 1.

    With the ``mean`` and ``std`` of :class:`LogitNormalTime` every step covers an equal share of the training times
    (density of arXiv:2403.03206 eq. 19). The two outer steps shrink more slowly than 1 / N (at the default 0.10 for
    N = 64, 0.07 for N = 256), so a solver's error falls with the square of theirs, not of 1 / N: a grid for few steps.
    """

    def __init__(self, mean: float = 0.0, std: float = 1.0) -> None:
        _check_logit_normal(mean, std)
        self.mean = mean
        self.std = std

    def times(self, num_steps: int) -> Tensor:
        return _as_grid(torch.sigmoid(self.mean + self.std * torch.special.ndtri(_fractions(num_steps))))


class TimeSampler(Protocol):
    """Training times."""

    def sample(self, batch_size: int, generator: torch.Generator, device: torch.device | str = "cpu") -> Tensor:
        """Times (B,) float32 in the open interval (0, 1). The generator is the only state."""
        ...


# Keeps times off the ends, where conversions between x_1, eps and v are singular.
_SMALLEST_TIME = 2.0**-24


def _uniforms(batch_size: int, generator: torch.Generator, stratified: bool) -> Tensor:
    """Uniform numbers (B,) float64 on [0, 1).

    Stratified: one number per bin of B equal bins, in random order, so that each entry alone is still uniform.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}: expected at least 1")
    device = generator.device
    u = torch.rand(batch_size, generator=generator, device=device, dtype=torch.float64)
    if not stratified:
        return u
    bins = torch.randperm(batch_size, generator=generator, device=device)
    return (bins + u) / batch_size


def _as_times(times: Tensor, device: torch.device | str) -> Tensor:
    """Times (B,) float64 as float32 inside the open interval, on ``device``."""
    return times.float().clamp(_SMALLEST_TIME, 1 - _SMALLEST_TIME).to(device)


class UniformTime(TimeSampler):
    """t uniform on (0, 1). ``stratified`` spreads each batch evenly, which lowers the variance of the loss.

    After arXiv:2107.00630 appendix I.1, with independent jitter in each bin instead of a common shift.
    """

    def __init__(self, stratified: bool = True) -> None:
        self.stratified = stratified

    def sample(self, batch_size: int, generator: torch.Generator, device: torch.device | str = "cpu") -> Tensor:
        return _as_times(_uniforms(batch_size, generator, self.stratified), device)


class LogitNormalTime(TimeSampler):
    """t = sigmoid(mean + std n) with n standard normal (arXiv:2403.03206 eq. 19), drawn by inverting its quantiles.

    ``stratified`` as in :class:`UniformTime`.
    """

    def __init__(self, mean: float = 0.0, std: float = 1.0, stratified: bool = True) -> None:
        _check_logit_normal(mean, std)
        self.mean = mean
        self.std = std
        self.stratified = stratified

    def sample(self, batch_size: int, generator: torch.Generator, device: torch.device | str = "cpu") -> Tensor:
        u = _uniforms(batch_size, generator, self.stratified)
        return _as_times(torch.sigmoid(self.mean + self.std * torch.special.ndtri(u)), device)


def grid_of(time_sampler: TimeSampler) -> TimeGrid:
    """The grid whose steps cover equal shares of ``time_sampler``'s times: a sampler's default after that training.

    An objective that trains certain steps trains those of this grid. The grid of m N steps contains that of N.
    """
    if isinstance(time_sampler, LogitNormalTime):
        return LogitNormalGrid(time_sampler.mean, time_sampler.std)
    return UniformGrid()
