"""Which re-injection rules reach the data's law with many steps: Gaussian data, where every step is linear.

Data are N(0, v) in one dimension and the denoiser is exact, x1_hat = w x_t / alpha_t with w = alpha_t^2 v / p,
p = alpha_t^2 v + sigma_t^2. A step of Euler then multiplies the variance of the state by a known number and adds the
fresh noise, so the law of the samples is a product and a sum: no sampling, no training.
"""

import math
from itertools import product

import torch

from fewstep.diagnostics.result import Axes, Result, Series
from fewstep.lab.theory.theorems import row
from fewstep.paths import Path
from fewstep.samplers import RuleLike, is_consistent, parse_rule

WIDTH = 0.3
COUNTS = tuple(4**k for k in range(1, 8))


def sample_spread(rule: RuleLike, path: Path, num_steps: int, width: float = WIDTH, *, endpoint: bool = False) -> float:
    """Standard deviation of the samples over ``width``, that of the data, after ``num_steps`` equal Euler steps; exact.

    With ``endpoint`` the model is the flow's exact endpoint map, x1_hat = x_t sqrt(v / p), not the posterior mean.
    """
    times = torch.linspace(0, 1, num_steps + 1, dtype=torch.float64)
    noise = parse_rule(rule)(path, times)
    (alpha, alpha_s), (sigma, sigma_s) = (
        (values[:-1], values[1:]) for values in (path.schedule.alpha(times), path.schedule.sigma(times))
    )
    variance = alpha.square() * width**2 + sigma.square()
    clean = width / variance.sqrt() if endpoint else alpha * width**2 / variance
    last = torch.arange(num_steps) == num_steps - 1
    kept, fresh = noise.kept.masked_fill(last, 1.0), noise.fresh.masked_fill(last, 0.0)
    gains = (alpha_s * clean + sigma_s * kept * (1 - alpha * clean) / sigma).square()
    added = torch.cat([torch.tensor([sum(x**2 for x in noise.initial)]).to(gains), (fresh * sigma_s).square()])
    later = torch.cat([gains.flip(0).cumprod(0).flip(0), gains.new_ones(1)])
    return math.sqrt(float(added @ later)) / width


def faded_limit(strength: float, undecided: float = 0.0) -> float:
    """Limit of :func:`sample_spread` for strengths that end at ``strength``, where sigma^2 / p is ``undecided``.

    Between two moments infinitely many steps renew the noise, so the state is in balance: its variance over p is
    (1 + c) / (2 - (1 - c) u), c = sqrt(1 - strength^2), u = ``undecided``. From there on the flow's ODE keeps it. A
    rule that acts to the end (u = 0) leaves sqrt((1 + c) / 2) of the standard deviation: 0.707 for strength 1.
    """
    kept = math.sqrt(1 - strength**2)
    return math.sqrt((1 + kept) / (2 - (1 - kept) * undecided))


def elf_limit(gamma: float, width: float = WIDTH) -> float:
    """Limit under ELF's rule: exp(-gamma I), I the integral of (1 - t) / (t^2 v + (1 - t)^2) over [0, 1].

    Its fresh noise has a variance of order 1 / N^2 per step, which vanishes; the cooling of the old noise stays.
    """
    return math.exp(-gamma * (math.pi * width - 2 * math.log(width)) / (2 * (1 + width**2)))


def window_limit(path: Path, strength: float, end: float, width: float = WIDTH) -> float:
    """Limit for ``strength`` up to the time ``end`` < 1 and none after it."""
    alpha, sigma = (
        float(of(torch.tensor(end, dtype=torch.float64))) for of in (path.schedule.alpha, path.schedule.sigma)
    )
    return faded_limit(strength, sigma**2 / (alpha**2 * width**2 + sigma**2))


def limits(path: Path, width: float = WIDTH) -> dict[str, float]:
    """Rule, in the spelling of ``--reinjection``, to its limit: at least one for each rule that has one."""
    return {
        "0": 1.0,
        "0.5": faded_limit(0.5),
        "0.9": faded_limit(0.9),
        "1": faded_limit(1.0),
        "linear:1,0": 1.0,
        "linear:0.2,0.6": faded_limit(0.6),
        "cosine:1,0": 1.0,
        "cosine:0,0.8": faded_limit(0.8),
        "window:1,0,0.5": window_limit(path, 1.0, 0.5, width),
        "window:1,0.5,1": faded_limit(1.0),
        "ancestral": 1.0,
        "ancestral:0.5": 1.0,
        "churn:8": 1.0,
        "churn:40,0.1,2": 1.0,
        "by_position:0.8": faded_limit(0.8),  # no position decided
        "elf:1.5": elf_limit(1.5, width),
        "elf_cooling:1.5": elf_limit(1.5, width),
    }


def consistency_curve(path: Path) -> Result:
    """Standard deviation of the samples over that of the data, over N, and at the largest N beside its limit."""
    lines, rows = {}, []
    for rule, limit in limits(path).items():
        spreads = tuple(sample_spread(rule, path, count) for count in COUNTS)
        lines[rule] = Series(rule, tuple(map(float, COUNTS)), spreads)
        word = "consistent" if is_consistent(rule) else "cold"
        rows.append(row(f"{rule}, N = {COUNTS[-1]} ({word})", spreads[-1], None, 0, limit))
    for gamma, count in product((0, 1), (4, 64)):
        spread = sample_spread(gamma, path, count, endpoint=True)
        rows.append(row(f"endpoint model, {gamma}, N = {count}", spread, None, 0, 1.0 if gamma == 1 else None))
    title = f"Gaussian data, standard deviation {WIDTH:g}, exact posterior mean"
    axes = Axes(title, "steps N", "standard deviation of samples / data", log_x=True)
    return Result("consistency", tuple(rows), lines, axes)
