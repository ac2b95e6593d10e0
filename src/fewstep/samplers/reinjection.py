"""Re-injection: how much of a state's noise is replaced by fresh noise in each step.

With strength gamma in [0, 1] the step from t to s >= t is, in the house formula,

    x_s = alpha_s x1_hat + sigma_s (sqrt(1 - gamma^2) eps_hat + gamma xi),  eps_hat = (x_t - alpha_t x1_hat) / sigma_t.

The old and the new noise have variances that add up to sigma_s^2: with the true (x_1, eps) in place of the
predictions, x_s has exactly the path's law at s. Every :class:`TimedReinjection`, and
:class:`fewstep.samplers.positions.CommitmentReinjection`, preserves the variance in this way. A rule with other
weights ``kept`` and ``fresh`` in place of sqrt(1 - gamma^2) and gamma does not, and stands under a name of its own
(:mod:`fewstep.samplers.elf`).

It is carried out with any solver. Where all positions share their weights: jump to t~, where sigma_t~ = kept sigma_s,
then move to alpha_s along the prediction and add fresh sigma_s xi. For the Euler solver,
x_t~ = alpha_t~ x1_hat + sigma_t~ eps_hat, so

    x_t~ + (alpha_s - alpha_t~) x1_hat + fresh sigma_s xi = alpha_s x1_hat + kept sigma_s eps_hat + fresh sigma_s xi.

Where each latent position has its own weights there is no common t~, and a model is asked at one time an example. Then
the solver goes to s itself, and what its state holds beyond alpha_s x1_hat is scaled there:

    x_s = alpha_s x1_hat + kept (x_s^solver - alpha_s x1_hat) + fresh sigma_s xi,

with ``x1_hat`` the solver's latest prediction. For Euler this is the same formula again. For Heun it is another choice
of where to look, and the latest prediction is the right one for it (this project's choice): it belongs to the time s
where the noise is exchanged, and the one at t would make the error several times larger, as a test measures.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from fewstep.paths import Path
from fewstep.shapes import expand_like

Weight = float | Tensor
"""One number for the whole step, or one a latent position (B, K)."""


@dataclass(frozen=True)
class NoiseWeights:
    """The noise of a new state at s is sigma_s (``kept`` eps_hat + ``fresh`` xi).

    Both are numbers, or both tensors (B, K) with one entry a latent position.
    """

    kept: Weight
    fresh: Weight

    @classmethod
    def preserving(cls, gamma: Weight) -> "NoiseWeights":
        """The weights sqrt(1 - gamma^2) and gamma, for a number or a tensor (B, K) in [0, 1]."""
        kept = (1 - gamma**2).sqrt() if isinstance(gamma, Tensor) else math.sqrt(1 - gamma**2)
        return cls(kept, gamma)


UNTOUCHED = NoiseWeights(kept=1.0, fresh=0.0)
"""The deterministic step."""


class NoisePlan(Protocol):
    """A rule fitted to one path and one grid of N steps."""

    @property
    def initial(self) -> NoiseWeights:
        """Weights at t = 0, where eps_hat is the given noise x_0; numbers."""
        ...

    def weights(self, step: int, x1_hat: Tensor, mask: Tensor | None) -> NoiseWeights:
        """Weights of the state at the end of ``step`` 0..N-2, given the prediction ``x1_hat`` (B, K, D) at its start
        and the mask (B, K). The sampler does not ask at step N-1, which ends without noise."""
        ...


class Reinjection(Protocol):
    """A rule that says how the noise of each new state is made."""

    def plan(self, path: Path, times: Tensor) -> NoisePlan:
        """The rule for the steps between ``times`` (N+1,) float64, rising from 0 to 1.

        Raises ValueError where it does not fit them; the sampler calls this before any evaluation.
        """
        ...


@dataclass(frozen=True)
class TimedPlan:
    """Weights that depend on time alone: ``steps`` N of them, and the ``initial`` ones. All are numbers."""

    steps: tuple[NoiseWeights, ...]
    initial: NoiseWeights = UNTOUCHED

    def weights(self, step: int, x1_hat: Tensor, mask: Tensor | None) -> NoiseWeights:
        """See :class:`NoisePlan`; the prediction is not used."""
        return self.steps[step]


class TimedReinjection(ABC):
    """A variance-preserving schedule of strengths over time. Subclasses say :meth:`strengths`."""

    @abstractmethod
    def strengths(self, path: Path, times: Tensor) -> Tensor:
        """gamma in [0, 1], (N,) float64, of the states at ``times[1:]``; ``times`` (N+1,) float64 rise from 0 to 1.

        The sampler passes over the last.
        """
        ...

    def plan(self, path: Path, times: Tensor) -> NoisePlan:
        """The weights of every step. Raises ValueError for strengths outside [0, 1] or another number than N."""
        return TimedPlan(tuple(map(NoiseWeights.preserving, checked_strengths(self, path, times).tolist())))


def checked_strengths(schedule: TimedReinjection, path: Path, times: Tensor) -> Tensor:
    """The strengths (N,) of ``schedule``; raises ValueError where it does not keep its promise."""
    gammas, num_steps = schedule.strengths(path, times), len(times) - 1
    if gammas.shape != (num_steps,):
        raise ValueError(
            f"re-injection strengths have shape {tuple(gammas.shape)} for {num_steps} steps: expected one a step."
        )
    if not bool(((gammas >= 0) & (gammas <= 1)).all()):
        raise ValueError(f"re-injection strengths are {gammas.tolist()}: expected numbers between 0 and 1.")
    return gammas


def check_strength(gamma: float) -> float:
    """``gamma`` as a float; raises ValueError outside [0, 1]."""
    if not 0 <= gamma <= 1:
        raise ValueError(
            f"re-injection strength is {gamma}: expected a number between 0 (none) and 1 (all noise fresh)."
        )
    return float(gamma)


class ConstantReinjection(TimedReinjection):
    """The same strength ``gamma`` in every step. Raises ValueError unless it lies in [0, 1]."""

    def __init__(self, gamma: float = 0.0) -> None:
        self.gamma = check_strength(gamma)

    def strengths(self, path: Path, times: Tensor) -> Tensor:
        """(N,) float64, all ``gamma``."""
        return torch.full((len(times) - 1,), self.gamma, dtype=torch.float64)


class ListedReinjection(TimedReinjection):
    """Strengths written out, one a step. Raises ValueError unless all lie in [0, 1]."""

    def __init__(self, gammas: Sequence[float]) -> None:
        self.gammas = tuple(check_strength(gamma) for gamma in gammas)

    def strengths(self, path: Path, times: Tensor) -> Tensor:
        """(N,) float64; raises ValueError where the list has another length than there are steps."""
        if len(self.gammas) != len(times) - 1:
            raise ValueError(
                f"{len(self.gammas)} re-injection strengths for {len(times) - 1} steps: pass one a step, or a single"
                " number."
            )
        return torch.tensor(self.gammas, dtype=torch.float64)


def as_timed(value: float | Sequence[float] | TimedReinjection) -> TimedReinjection:
    """A number becomes a constant schedule, a sequence a listed one, a schedule stays itself."""
    if isinstance(value, int | float):
        return ConstantReinjection(value)
    if isinstance(value, Sequence):
        return ListedReinjection(value)
    return value


def as_reinjection(value: float | Sequence[float] | Reinjection) -> Reinjection:
    """Like :func:`as_timed`, for rules of every kind."""
    return as_timed(value) if isinstance(value, int | float | Sequence) else value


def jump_time(path: Path, s: Tensor, kept: float) -> Tensor:
    """t~ (B,) >= s with sigma_t~ = ``kept`` sigma_s, for ``s`` (B,) and ``kept`` in [0, 1]. Exactly 1 at 0."""
    return path.schedule.t_of_sigma(path.schedule.sigma(s) * kept).clamp(min=s)


def scale_noise(path: Path, x_t: Tensor, x1_hat: Tensor, t: Tensor, scale: Weight) -> Tensor:
    """alpha_t x1_hat + ``scale`` (x_t - alpha_t x1_hat), (B, K, D), for times ``t`` (B,) and scales as numbers or
    (B, K). Where the scale is 1 this is ``x_t`` bit for bit, and alpha_t x1_hat where it is 0."""
    alpha, _ = path.alpha_sigma(t, x_t)
    mean = (alpha * x1_hat).to(x_t.dtype)
    return torch.lerp(mean, x_t, expand_like(scale, x_t).to(x_t) if isinstance(scale, Tensor) else scale)


def reinject(
    path: Path, x_jump: Tensor, x1_hat: Tensor, t_jump: Tensor, s: Tensor, fresh: Weight, xi: Tensor | None
) -> Tensor:
    """x_s (B, K, D) from the state ``x_jump`` at ``t_jump`` >= s: move to alpha_s along ``x1_hat``, add fresh noise.

    States and the standard normal ``xi`` are (B, K, D), times (B,), ``fresh`` a number or (B, K). Without ``xi``
    nothing is added.
    """
    alpha_jump, _ = path.alpha_sigma(t_jump, x_jump)
    alpha_s, sigma_s = path.alpha_sigma(s, x_jump)
    x_s = x_jump + (alpha_s - alpha_jump) * x1_hat
    if xi is None:
        return x_s
    weight = expand_like(fresh, x_s).to(x_s) if isinstance(fresh, Tensor) else fresh
    return x_s + weight * sigma_s * xi
