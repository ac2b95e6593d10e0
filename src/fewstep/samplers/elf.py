"""The stochastic sampler of ELF (Embedded Language Flows), for comparison, and the control for its being colder.

ELF's step (arXiv:2605.10938; the rule is that of the authors' code, github.com/lillian039/ELF, functions ``_sde_step``
and ``_generate_samples_single_batch``) starts from the state x at t on the linear path and its time grid t_k. With
a = 1 - gamma (t_{k+1} - t_k), held in [0, 1],

    x' = a x + (1 - a) xi   at   t' = a t,   x1_hat from (x', t'),   then Euler from t' to t_{k+1};

the last step is plain Euler. The signal a t is right for t', but the noise is not: its *standard deviations* a (1 - t)
and 1 - a add up to sigma_t' = 1 - a t, where independent noises add up in *variance*. As a re-injection it mixes
linearly where the house formula mixes on the circle: with w = (1 - a) / (1 - a t),

    x' = alpha x1_hat + sigma ((1 - w) eps_hat + w xi),   noise variance (1 - w)^2 + w^2 <= 1, as low as 1/2 at w = 1/2,

and what one step lost the next does not give back. With the true pair, gamma = 1.5 and states evaluated at 0, 1/4, 1/2
and 3/4, the noise has 0.72, 0.60, 0.54 and 0.54 of the standard deviation that it should; in 8 equal steps it falls to
0.46, in 32 from 0.95 at the start to 0.29. The state is therefore colder than the time at which the network is asked.
"""

import math
from dataclasses import dataclass

from torch import Tensor

from fewstep.paths import Path
from fewstep.samplers.reinjection import UNTOUCHED, NoisePlan, NoiseWeights, Reinjection, TimedPlan


class ElfReinjection:
    """ELF's SDE with its ``gamma`` >= 0 (1.5 or 2 in its few-step settings), which does not preserve the variance.

    The times of the sampler's grid are those at which the network is evaluated, t' above, so that all rules compare at
    the same evaluations; ELF's own grid follows from them. (To give ELF's t_k instead, pass a grid of a_k t_k.) The
    initial noise is mixed too, as in ELF. On a path other than the linear one the rule is applied to
    x_t / (alpha_t + sigma_t), which lies on the linear path at u = alpha_t / (alpha_t + sigma_t), where signal and
    noise stand in the same proportion. Raises ValueError for a ``gamma`` below 0 or infinite.
    """

    def __init__(self, gamma: float = 1.5) -> None:
        if not 0 <= gamma < math.inf:
            raise ValueError(f"ELF's gamma is {gamma}: expected a finite number of at least 0.")
        self.gamma = float(gamma)

    def plan(self, path: Path, times: Tensor) -> NoisePlan:
        """See :class:`fewstep.samplers.Reinjection`."""
        alpha, sigma = path.schedule.alpha(times.double()), path.schedule.sigma(times.double())
        evaluated = (alpha / (alpha + sigma)).tolist()
        mixed = []
        for u, a in zip(evaluated[:-1], self._shares(evaluated), strict=True):
            fresh = (1 - a) / (1 - u)
            mixed.append(NoiseWeights(1 - fresh, fresh))
        return TimedPlan(steps=(*mixed[1:], UNTOUCHED), initial=mixed[0])

    def _shares(self, evaluated: list[float]) -> list[float]:
        """a_k of every state but the last, from the times (N+1,) that are evaluated.

        a_k t_k = t'_k with a_k = 1 - gamma (t_{k+1} - t_k) is a quadratic equation for t_k, solved backward in time
        from t_{N-1} = t'_{N-1}, whose step is plain. t'_0 = 0 leaves t_0 = 0.
        """
        shares, later = [1.0], evaluated[-2]
        for u in reversed(evaluated[1:-2]):
            b = 1 - self.gamma * later
            root = math.sqrt(b * b + 4 * self.gamma * u)
            later = 2 * u / (b + root) if b > 0 else (root - b) / (2 * self.gamma)
            shares.append(u / later)
        if len(evaluated) > 2:
            shares.append(max(0.0, 1 - self.gamma * later))
        return shares[::-1]


@dataclass(frozen=True)
class MatchedCooling:
    """The deterministic sampler that is exactly as cold as ``rule``: the control for what a rule gains by its noise.

    Nothing is drawn; eps_hat is scaled such that, with the true pair, every state has the same noise variance as under
    ``rule`` with fresh noise (this project's definition). For a rule that preserves the variance this is the flow's
    ODE. A trajectory must start at step 0.
    """

    rule: Reinjection

    def plan(self, path: Path, times: Tensor) -> NoisePlan:
        """See :class:`fewstep.samplers.Reinjection`. Raises ValueError for a rule that depends on more than time."""
        noisy = self.rule.plan(path, times)
        if not isinstance(noisy, TimedPlan):
            raise ValueError(
                f"{type(self.rule).__name__} cannot be matched: expected a rule that depends on time alone."
            )
        cooled, before = [], 1.0
        for weights in (noisy.initial, *noisy.steps):
            assert not isinstance(weights.kept, Tensor) and not isinstance(weights.fresh, Tensor)  # see TimedPlan
            after = math.sqrt((weights.kept * before) ** 2 + weights.fresh**2)
            cooled.append(NoiseWeights(after / before if before > 0 else 1.0, 0.0))
            before = after
        return TimedPlan(steps=tuple(cooled[1:]), initial=cooled[0])
