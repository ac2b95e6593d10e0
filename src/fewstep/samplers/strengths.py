"""Schedules of re-injection strength over time, all of which keep the path's variance.

The strength belongs to the state that a step arrives at, so every schedule is a function of s, the end of the step: the
same function for any number of steps. None acts at s = 1, where no noise is left. N steps.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from fewstep.paths import Path
from fewstep.samplers.reinjection import TimedReinjection, as_timed, check_strength, checked_strengths


class LinearReinjection(TimedReinjection):
    """gamma(s) = ``first`` + (``last`` - ``first``) s. Raises ValueError unless both lie in [0, 1]."""

    def __init__(self, first: float = 1.0, last: float = 0.0) -> None:
        self.first = check_strength(first)
        self.last = check_strength(last)

    def strengths(self, path: Path, times: Tensor) -> Tensor:
        """(N,) float64; the path is not used."""
        return torch.lerp(*_ends(self.first, self.last), times[1:].double())


class CosineReinjection(TimedReinjection):
    """gamma(s) = ``last`` + (``first`` - ``last``) (1 + cos(pi s)) / 2: level near both ends of time, steepest between.

    Raises ValueError unless both strengths lie in [0, 1].
    """

    def __init__(self, first: float = 1.0, last: float = 0.0) -> None:
        self.first = check_strength(first)
        self.last = check_strength(last)

    def strengths(self, path: Path, times: Tensor) -> Tensor:
        """(N,) float64; the path is not used."""
        return torch.lerp(*_ends(self.first, self.last), torch.sin(math.pi / 2 * times[1:].double()).square())


def _ends(first: float, last: float) -> tuple[Tensor, Tensor]:
    return torch.tensor(first, dtype=torch.float64), torch.tensor(last, dtype=torch.float64)


class WindowReinjection(TimedReinjection):
    """``strength`` where ``begin`` <= s < ``end``, and none elsewhere.

    ``strength`` is a number, one a step, or a schedule. Raises ValueError for strengths outside [0, 1] and unless
    0 <= begin < end <= 1.
    """

    def __init__(self, strength: float | Sequence[float] | TimedReinjection, begin: float, end: float) -> None:
        if not 0 <= begin < end <= 1:
            raise ValueError(f"window of time is {begin} to {end}: expected 0 <= begin < end <= 1.")
        self.strength = as_timed(strength)
        self.begin = float(begin)
        self.end = float(end)

    def strengths(self, path: Path, times: Tensor) -> Tensor:
        """(N,) float64; raises ValueError where the inner strengths do not fit the steps."""
        s = times[1:]
        inside = (s >= self.begin) & (s < self.end)
        return torch.where(inside, checked_strengths(self.strength, path, times), 0.0)


def early_reinjection(gamma: float = 1.0, end: float = 0.5) -> WindowReinjection:
    """Strength ``gamma`` while s < ``end``: noise where coarse choices are still open."""
    return WindowReinjection(gamma, 0.0, end)


def late_reinjection(gamma: float = 1.0, begin: float = 0.5) -> WindowReinjection:
    """Strength ``gamma`` from s = ``begin`` on: what :func:`early_reinjection` leaves out."""
    return WindowReinjection(gamma, begin, 1.0)


class AncestralReinjection(TimedReinjection):
    """gamma = ``eta`` sqrt(1 - (alpha_t sigma_s / (alpha_s sigma_t))^2): DDIM with its eta (arXiv:2010.02502 eq. 16).

    At eta = 1 the step draws from the posterior of the noising process (DDPM, arXiv:2006.11239). The first step, from
    pure noise, has gamma = eta. Raises ValueError unless ``eta`` lies in [0, 1].
    """

    def __init__(self, eta: float = 1.0) -> None:
        self.eta = check_strength(eta)

    def strengths(self, path: Path, times: Tensor) -> Tensor:
        """(N,) float64."""
        signal = path.schedule.alpha(times.double()) / path.schedule.sigma(times.double())  # infinite at t = 1
        return self.eta * (1 - (signal[:-1] / signal[1:]).square()).sqrt()


class ChurnReinjection(TimedReinjection):
    """The churn of EDM (arXiv:2206.00364 algorithm 2), as the strengths of our steps.

    EDM's noise level is S = sigma / alpha and its state x / alpha. It raises a state from S to S' = (1 + c) S by adding
    noise of variance S'^2 - S^2, with c = min(``churn`` / N, sqrt(2) - 1) where S' / (1 + c) lies in
    [``noise_min``, ``noise_max``] and c = 0 elsewhere, evaluates there and steps to the next level. We evaluate at
    the times of the grid, so those are its S': a step arrives at S'_s / (1 + c) and is raised to S'_s. The share of old
    noise in the new state is 1 / (1 + c), whatever the path, hence

        gamma = sqrt(1 - 1 / (1 + c)^2),  at most sqrt(1 / 2).

    With Euler steps the states are those of algorithm 2 without its second-order correction; with
    :class:`fewstep.samplers.HeunSolver` that correction is made on this project's path. EDM's inflation S_noise > 1 is
    left out (it is 1 here): it would not keep the variance. EDM's defaults are for images, ``churn`` of 30 to 80 for
    256 steps; few steps reach the cap with ``churn`` >= 0.415 N. Raises ValueError for a negative number or
    ``noise_min`` > ``noise_max``.
    """

    def __init__(self, churn: float = 1.0, noise_min: float = 0.0, noise_max: float = math.inf) -> None:
        if not 0 <= churn < math.inf:
            raise ValueError(f"churn is {churn}: expected a finite number of at least 0.")
        if not 0 <= noise_min <= noise_max:
            raise ValueError(
                f"churn between noise levels {noise_min} and {noise_max}: expected 0 <= noise_min <= noise_max."
            )
        self.churn = float(churn)
        self.noise_min = float(noise_min)
        self.noise_max = float(noise_max)

    def strengths(self, path: Path, times: Tensor) -> Tensor:
        """(N,) float64."""
        s = times[1:].double()
        raised = 1 + min(self.churn / len(s), math.sqrt(2) - 1)
        level = path.schedule.sigma(s) / path.schedule.alpha(s) / raised
        inside = (level >= self.noise_min) & (level <= self.noise_max)
        return math.sqrt(1 - raised**-2) * inside.double()
