"""Which re-injection rules reach the data's law with many steps: Gaussian data, where every step is linear.

Data are N(0, v) in one dimension and the denoiser is exact, x1_hat = w x_t / alpha_t with w = alpha_t^2 v / p,
p = alpha_t^2 v + sigma_t^2. A step of Euler then multiplies the variance of the state by a known number and adds the
fresh noise: no sampling, no training.
"""

import math
from itertools import product

import torch

from fewstep.diagnostics.result import Axes, Result, Series
from fewstep.lab.theory.theorems import row, study
from fewstep.paths import Path
from fewstep.samplers import RuleLike, is_consistent, parse_rule

WIDTH = 0.3
COUNTS = tuple(4**k for k in range(1, 8))


def sample_spread(rule: RuleLike, path: Path, num_steps: int, *, endpoint: bool = False) -> float:
    """Standard deviation of the samples over that of the data after ``num_steps`` equal Euler steps; exact.

    With ``endpoint`` the model is the flow's exact endpoint map, x1_hat = x_t sqrt(v / p), not the posterior mean.
    """
    times = torch.linspace(0, 1, num_steps + 1, dtype=torch.float64)
    noise, alpha, sigma = parse_rule(rule)(path, times), path.schedule.alpha(times), path.schedule.sigma(times)
    p = alpha[:-1].square() * WIDTH**2 + sigma[:-1].square()
    clean = WIDTH / p.sqrt() if endpoint else alpha[:-1] * WIDTH**2 / p
    last = torch.arange(num_steps) == num_steps - 1
    kept, fresh = noise.kept.masked_fill(last, 1.0), noise.fresh.masked_fill(last, 0.0)
    gains = alpha[1:] * clean + sigma[1:] * kept * (1 - alpha[:-1] * clean) / sigma[:-1]
    variance = sum(x**2 for x in noise.initial)
    for gain, added in zip(gains.square().tolist(), (fresh * sigma[1:]).square().tolist(), strict=True):
        variance = gain * variance + added
    return math.sqrt(variance) / WIDTH


def window_limit(path: Path, strength: float, end: float = 1.0) -> float:
    """Limit of :func:`sample_spread` for strengths that are ``strength`` at the time ``end``, and none after it.

    Infinitely many steps renew the noise, so the state is in balance: its variance over p is
    (1 + c) / (2 - (1 - c) u), c = sqrt(1 - strength^2), u = sigma^2 / p. From there on the flow's ODE keeps it.
    """
    time = torch.tensor(end, dtype=torch.float64)
    alpha, sigma = float(path.schedule.alpha(time)), float(path.schedule.sigma(time))
    undecided, kept = sigma**2 / (alpha**2 * WIDTH**2 + sigma**2), math.sqrt(1 - strength**2)
    return math.sqrt((1 + kept) / (2 - (1 - kept) * undecided))


def elf_limit(gamma: float) -> float:
    """Limit under ELF's rule: exp(-gamma I), I the integral of (1 - t) / (t^2 v + (1 - t)^2) over [0, 1].

    Its fresh noise has a variance of order 1 / N^2 per step, which vanishes; the cooling of the old noise stays.
    """
    return math.exp(-gamma * (math.pi * WIDTH - 2 * math.log(WIDTH)) / (2 * (1 + WIDTH**2)))


def limits(path: Path) -> dict[str, float]:
    """Rule, in the spelling of ``--reinjection``, to its limit: at least one for each rule that has one."""
    return {
        "0": 1.0,
        "0.5": window_limit(path, 0.5),
        "0.9": window_limit(path, 0.9),
        "1": window_limit(path, 1.0),
        "linear:1,0": 1.0,
        "linear:0.2,0.6": window_limit(path, 0.6),
        "cosine:1,0": 1.0,
        "cosine:0,0.8": window_limit(path, 0.8),
        "window:1,0,0.5": window_limit(path, 1.0, 0.5),
        "window:1,0.5,1": window_limit(path, 1.0),
        "ancestral": 1.0,
        "ancestral:0.5": 1.0,
        "churn:8": 1.0,
        "churn:40,0.1,2": 1.0,
        "by_position:0.8": window_limit(path, 0.8),  # no position decided
        "elf:1.5": elf_limit(1.5),
        "elf_cooling:1.5": elf_limit(1.5),
    }


def consistency_curve(path: Path) -> Result:
    """Standard deviation of the samples over that of the data, over N, and at the largest N beside its limit."""
    lines, rows = [], []
    for rule, limit in limits(path).items():
        spreads = tuple(sample_spread(rule, path, count) for count in COUNTS)
        lines.append(Series(rule, tuple(map(float, COUNTS)), spreads))
        word = "consistent" if is_consistent(rule) else "cold"
        rows.append(row(f"{rule}, N = {COUNTS[-1]} ({word})", spreads[-1], None, 0, limit))
    for gamma, count in product((0, 1), (4, 64)):
        spread = sample_spread(gamma, path, count, endpoint=True)
        rows.append(row(f"endpoint model, {gamma}, N = {count}", spread, None, 0, 1.0 if gamma == 1 else None))
    title = f"Gaussian data, standard deviation {WIDTH:g}, exact posterior mean"
    return study("consistency", rows, lines, Axes(title, "steps N", "standard deviation of samples / data", log_x=True))
