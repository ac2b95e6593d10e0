"""Re-injection: how much of a state's noise is replaced by fresh noise in each step.

With strength gamma in [0, 1] the step from t to s >= t is, in the house formula,

    x_s = alpha_s x1_hat + sigma_s (sqrt(1 - gamma^2) eps_hat + gamma xi),  eps_hat = (x_t - alpha_t x1_hat) / sigma_t.

It is carried out with any solver as: jump to t~, where sigma_t~ = sigma_s sqrt(1 - gamma^2), then move to alpha_s
along the prediction and add gamma sigma_s xi. For the Euler solver, x_t~ = alpha_t~ x1_hat + sigma_t~ eps_hat, so

    x_t~ + (alpha_s - alpha_t~) x1_hat + gamma sigma_s xi = alpha_s x1_hat + sigma_t~ eps_hat + gamma sigma_s xi

is the house formula on every path. The old and the new noise have variances that add up to sigma_s^2: with the true
(x_1, eps) in place of the predictions, x_s has exactly the path's law at s.
"""

import math
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from fewstep.paths import Path


class Reinjection(Protocol):
    """A schedule of strengths."""

    def strengths(self, num_steps: int) -> Tensor:
        """gamma_k in [0, 1], (N,) float64, one a step. The sampler passes over the last: it ends without noise."""
        ...


def _check_strength(gamma: float) -> float:
    if not 0 <= gamma <= 1:
        raise ValueError(
            f"re-injection strength is {gamma}: expected a number between 0 (none) and 1 (all noise fresh)."
        )
    return float(gamma)


class ConstantReinjection:
    """The same strength ``gamma`` in every step. Raises ValueError unless it lies in [0, 1]."""

    def __init__(self, gamma: float = 0.0) -> None:
        self.gamma = _check_strength(gamma)

    def strengths(self, num_steps: int) -> Tensor:
        """(N,) float64, all ``gamma``."""
        return torch.full((num_steps,), self.gamma, dtype=torch.float64)


class ListedReinjection:
    """Strengths written out, one a step. Raises ValueError unless all lie in [0, 1]."""

    def __init__(self, gammas: Sequence[float]) -> None:
        self.gammas = tuple(_check_strength(gamma) for gamma in gammas)

    def strengths(self, num_steps: int) -> Tensor:
        """(N,) float64; raises ValueError where the list has another length than ``num_steps``."""
        if len(self.gammas) != num_steps:
            raise ValueError(
                f"{len(self.gammas)} re-injection strengths for {num_steps} steps: pass one a step, or a single number."
            )
        return torch.tensor(self.gammas, dtype=torch.float64)


def as_reinjection(value: float | Sequence[float] | Reinjection) -> Reinjection:
    """A number becomes a constant schedule, a sequence a listed one, a schedule stays itself."""
    if isinstance(value, int | float):
        return ConstantReinjection(value)
    if isinstance(value, Sequence):
        return ListedReinjection(value)
    return value


def jump_time(path: Path, s: Tensor, gamma: float) -> Tensor:
    """t~ (B,) with sigma_t~ = sigma_s sqrt(1 - gamma^2), for ``s`` (B,). Exactly 1 at gamma = 1."""
    return path.schedule.t_of_sigma(path.schedule.sigma(s) * math.sqrt(1 - gamma**2)).clamp(min=s)


def reinject(path: Path, x_jump: Tensor, x1_hat: Tensor, t_jump: Tensor, s: Tensor, gamma: float, xi: Tensor) -> Tensor:
    """x_s (B, K, D) from the state ``x_jump`` at ``t_jump``, the prediction ``x1_hat`` and standard noise ``xi``.

    States are (B, K, D), times (B,); ``t_jump`` is :func:`jump_time` of ``s``.
    """
    alpha_jump, _ = path.alpha_sigma(t_jump, x_jump)
    alpha_s, sigma_s = path.alpha_sigma(s, x_jump)
    return x_jump + (alpha_s - alpha_jump) * x1_hat + gamma * sigma_s * xi
