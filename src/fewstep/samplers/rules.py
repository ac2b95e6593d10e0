"""Re-injection rules: how much old noise each step keeps and how much fresh noise it adds. N steps.

A rule is a function of the path and the times (N+1,) that returns a :class:`Noise`. With strength gamma in [0, 1],

    x_s = alpha_s x1_hat + sigma_s (sqrt(1 - gamma^2) eps_hat + gamma xi),   eps_hat = (x_t - alpha_t x1_hat) / sigma_t,

so the variances of old and new noise add up to sigma_s^2: with the true (x_1, eps) in place of the predictions, x_s has
exactly the path's law. All rules do this except ``elf``, which is here for comparison, and its control. A strength
belongs to s, the end of a step; the last step ends at s = 1, where no noise is left.

A posterior mean x1_hat varies less than x_1, so fresh noise in place of eps_hat cools the samples. A rule is
*consistent* if samples of the exact posterior mean reach the data's law as N grows: strengths that fall as
1 / sqrt(N), or to 0 at s = 1, do; a constant strength does not (docs/findings/consistency.md).
"""

import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import cast

import torch
from torch import Tensor

from fewstep.errors import UserError
from fewstep.paths import Path
from fewstep.registry import resolve


@dataclass(frozen=True)
class Noise:
    """The noise of the state after step k is sigma_s (``kept[k]`` eps_hat + ``fresh[k]`` xi); both (N,) float64.

    ``initial`` are the weights at t = 0, where eps_hat is x_0. With ``by_position``, a latent position of decidedness d
    in [0, 1] gets (1 - d) ``fresh[k]`` and keeps the path's variance.
    """

    kept: Tensor
    fresh: Tensor
    initial: tuple[float, float] = (1.0, 0.0)
    by_position: bool = False

    @classmethod
    def preserving(cls, strengths: Tensor, *, by_position: bool = False) -> "Noise":
        """Strengths gamma (N,) in [0, 1] that keep the path's variance: kept sqrt(1 - gamma^2), fresh gamma."""
        if not bool(((strengths >= 0) & (strengths <= 1)).all()):
            raise ValueError(f"re-injection strengths are {strengths.tolist()}: expected numbers between 0 and 1.")
        return cls((1 - strengths**2).sqrt(), strengths, by_position=by_position)


Rule = Callable[[Path, Tensor], Noise]
"""(path, times (N+1,) float64, rising from 0 to 1) -> noise of the N steps."""

RuleLike = float | str | Sequence[float] | Rule
"""What :func:`parse_rule` reads."""


@dataclass(frozen=True)
class ShippedRule:
    """A rule of this package. ``consistent``: see above; None for strengths that are listed, which have no limit."""

    noise: Rule
    consistent: bool | None

    def __call__(self, path: Path, times: Tensor) -> Noise:
        return self.noise(path, times)


def _over_time(strength: Callable[[Tensor], Tensor], consistent: bool, *, by_position: bool = False) -> Rule:
    """Strengths that depend on s alone, the times (N,) at which the steps end."""
    return ShippedRule(lambda path, times: Noise.preserving(strength(times[1:]), by_position=by_position), consistent)


def is_consistent(rule: RuleLike) -> bool | None:
    """Whether many Euler steps of an exact posterior mean reach the data's law under ``rule``; None: not known.

    An endpoint model is another matter: there strength 1 is exact with any number of steps.
    """
    return getattr(parse_rule(rule), "consistent", None)


def constant(strength: float = 0.0) -> Rule:
    """The same strength in every step."""
    gamma = _checked(strength)
    return _over_time(lambda s: torch.full_like(s, gamma), gamma == 0)


def listed(*strengths: float) -> Rule:
    """One strength per step."""
    gammas = [_checked(strength) for strength in strengths]

    def rule(path: Path, times: Tensor) -> Noise:
        if len(gammas) != len(times) - 1:
            raise ValueError(f"{len(gammas)} re-injection strengths for {len(times) - 1} steps: pass one per step.")
        return Noise.preserving(torch.tensor(gammas, dtype=torch.float64))

    return ShippedRule(rule, None)


def linear(first: float = 1.0, last: float = 0.0) -> Rule:
    """gamma(s) = ``first`` + (``last`` - ``first``) s."""
    first, last = _checked(first), _checked(last)
    return _over_time(lambda s: _between(first, last, s), last == 0)


def cosine(first: float = 1.0, last: float = 0.0) -> Rule:
    """gamma(s) = ``last`` + (``first`` - ``last``) (1 + cos(pi s)) / 2: flat at both ends of time."""
    first, last = _checked(first), _checked(last)
    return _over_time(lambda s: _between(first, last, (math.pi / 2 * s).sin().square()), last == 0)


def window(strength: float, begin: float, end: float) -> Rule:
    """``strength`` where ``begin`` <= s < ``end``, and 0 elsewhere."""
    if not 0 <= begin < end <= 1:
        raise ValueError(f"window of time is {begin} to {end}: expected 0 <= begin < end <= 1.")
    gamma = _checked(strength)
    return _over_time(lambda s: gamma * ((s >= begin) & (s < end)).double(), gamma == 0)


def ancestral(eta: float = 1.0) -> Rule:
    """DDIM with its ``eta`` (arXiv:2010.02502 eq. 16): gamma = eta sqrt(1 - (alpha_t sigma_s / (alpha_s sigma_t))^2).

    eta = 1 draws from the posterior of the noising process (DDPM, arXiv:2006.11239).
    """
    scale = _checked(eta)

    def rule(path: Path, times: Tensor) -> Noise:
        signal = path.schedule.alpha(times) / path.schedule.sigma(times)  # infinite at t = 1
        return Noise.preserving(scale * (1 - (signal[:-1] / signal[1:]).square()).sqrt())

    return ShippedRule(rule, consistent=True)


def churn(churn: float = 1.0, noise_min: float = 0.0, noise_max: float = math.inf) -> Rule:
    """The churn of EDM (arXiv:2206.00364 algorithm 2) between two of its noise levels sigma / alpha.

    EDM raises a state's level S to (1 + c) S, c = min(``churn`` / N, sqrt(2) - 1), and evaluates there; our times are
    those of the evaluations. Hence gamma = sqrt(1 - (1 + c)^-2), at most sqrt(1/2). Its S_noise is 1.
    """
    if not 0 <= churn < math.inf:
        raise ValueError(f"churn is {churn}: expected a finite number of at least 0.")
    if not 0 <= noise_min <= noise_max:
        raise ValueError(
            f"churn between noise levels {noise_min} and {noise_max}: expected 0 <= noise_min <= noise_max."
        )

    def rule(path: Path, times: Tensor) -> Noise:
        s = times[1:]
        raised = 1 + min(churn / len(s), math.sqrt(2) - 1)
        level = path.schedule.sigma(s) / path.schedule.alpha(s) / raised
        inside = (level >= noise_min) & (level <= noise_max)
        return Noise.preserving(math.sqrt(1 - raised**-2) * inside.double())

    return ShippedRule(rule, consistent=True)


def by_position(strength: float = 1.0) -> Rule:
    """gamma = ``strength`` (1 - decidedness): fresh noise only where a latent position is still undecided.

    After the confidence rule of masked models (arXiv:2202.04200). The sampler asks its ``decidedness`` at every step
    but the last.
    """
    gamma = _checked(strength)
    return _over_time(lambda s: torch.full_like(s, gamma), gamma == 0, by_position=True)


def elf(gamma: float = 1.5) -> Rule:
    """The SDE of ELF (arXiv:2605.10938; ``_sde_step`` of github.com/lillian039/ELF), which loses noise variance.

    From x at t on the linear path, with a = 1 - gamma (t_{k+1} - t_k) held in [0, 1], ELF evaluates at a x + (1 - a) xi
    and a t, then makes an Euler step. *Standard deviations* of old and new noise add up to sigma, where *variances*
    should: at gamma = 1.5 and 4 equal steps the noise has 0.72, 0.60, 0.54 and 0.54 of its standard deviation.

    The sampler's times are those of the evaluations, a t. On other paths the rule acts on x_t / (alpha_t + sigma_t).
    """
    if not 0 <= gamma < math.inf:
        raise ValueError(f"ELF's gamma is {gamma}: expected a finite number of at least 0.")

    def rule(path: Path, times: Tensor) -> Noise:
        alpha, sigma = path.schedule.alpha(times), path.schedule.sigma(times)
        evaluated = (alpha / (alpha + sigma)).tolist()
        shares = _elf_shares(gamma, evaluated)
        fresh = [(1 - a) / (1 - u) for u, a in zip(evaluated[:-1], shares, strict=True)]
        weights = torch.tensor([*fresh[1:], 0.0], dtype=torch.float64)
        return Noise(1 - weights, weights, initial=(1 - fresh[0], fresh[0]))

    return ShippedRule(rule, gamma == 0)


def _elf_shares(gamma: float, evaluated: list[float]) -> list[float]:
    """a_k of every state but the last, from the times u_k (N+1,) of the evaluations.

    a_k t_k = u_k with a_k = 1 - gamma (t_{k+1} - t_k) is a quadratic equation for t_k, solved backward in time from
    t_{N-1} = u_{N-1}, whose step is plain.
    """
    shares, later = [1.0], evaluated[-2]
    for u in reversed(evaluated[1:-2]):
        b = 1 - gamma * later
        root = math.sqrt(b * b + 4 * gamma * u)
        later = 2 * u / (b + root) if b > 0 else (root - b) / (2 * gamma)
        shares.append(u / later)
    if len(evaluated) > 2:
        shares.append(max(0.0, 1 - gamma * later))
    return shares[::-1]


def elf_cooling(gamma: float = 1.5) -> Rule:
    """The deterministic control of :func:`elf`: with the true pair every state is exactly as cold.

    eps_hat is scaled and nothing is drawn: a gain of ELF over this is due to its noise, not its being colder.
    """
    noisy = elf(gamma)

    def rule(path: Path, times: Tensor) -> Noise:
        noise = noisy(path, times)
        kept, before = [], 1.0
        for old, new in [noise.initial, *zip(noise.kept.tolist(), noise.fresh.tolist(), strict=True)]:
            after = math.sqrt((old * before) ** 2 + new**2)
            kept.append(after / before if before > 0 else 1.0)
            before = after
        weights = torch.tensor(kept[1:], dtype=torch.float64)
        return Noise(weights, torch.zeros_like(weights), initial=(kept[0], 0.0))

    return ShippedRule(rule, gamma == 0)


RULES: dict[str, Callable[..., Rule]] = {
    "constant": constant,
    "listed": listed,
    "linear": linear,
    "cosine": cosine,
    "window": window,
    "ancestral": ancestral,
    "churn": churn,
    "by_position": by_position,
    "elf": elf,
    "elf_cooling": elf_cooling,
}
"""Name -> a function of numbers that returns a rule."""


def parse_rule(value: RuleLike) -> Rule:
    """The rule that ``value`` names. Raises ``ValueError``, in one line, for anything else than

    a number, which is a constant strength; a sequence, or text as "0,0.3,1", of one strength per step; "NAME" or
    "NAME:NUMBER,...", a rule of ``RULES``, as "cosine:1,0", or a function of another package by its dotted path, as
    "my_package.my_rule:0.5"; and a rule, which stays itself.
    """
    if callable(value):
        return value
    if isinstance(value, Real):  # NumPy's numbers too
        return constant(float(value))
    if not isinstance(value, str):
        return listed(*map(float, cast("Sequence[float]", value)))
    name, _, rest = value.strip().partition(":")
    if _numbers(value) is not None:
        name, rest = "listed" if "," in value else "constant", value
    numbers = _numbers(rest) if rest or ":" in value else []
    if numbers is None or not (name in RULES or "." in name):
        raise ValueError(
            f"reinjection is {value!r}: expected a strength from 0 to 1, NAME or NAME:NUMBER,... with one of "
            f"{', '.join(RULES)}, or the dotted path of a rule of your own"
        )
    try:
        factory = resolve(RULES, name, "reinjection")
        signature = inspect.signature(factory)
        try:
            signature.bind(*numbers)
        except TypeError:
            usage = ", ".join(str(each.replace(annotation=each.empty)) for each in signature.parameters.values())
            raise ValueError(f"{len(numbers)} numbers for {name}({usage})") from None
        return factory(*numbers)
    except (ValueError, UserError) as error:
        raise ValueError(f"reinjection is {value!r}: {error}") from None


def _numbers(text: str) -> list[float] | None:
    """Numbers with commas between them; None for text of another kind."""
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        return None


def _checked(strength: float) -> float:
    if not 0 <= strength <= 1:
        raise ValueError(f"re-injection strength is {strength}: expected a number between 0 (none) and 1 (all fresh).")
    return float(strength)


def _between(first: float, last: float, weight: Tensor) -> Tensor:
    return torch.lerp(torch.full_like(weight, first), torch.full_like(weight, last), weight)
