"""The theorems of arXiv:2606.30705 as we read them, in closed form: one study each, a ``Result`` with rows and curves.

``docs/findings/theory.md`` has the reading, and what is proven. E examples, S scales.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from fewstep.diagnostics.result import Axes, Estimate, Result, Row, Series, estimate_series
from fewstep.lab.theory.geometry import (
    boundary_densities,
    boundary_distances,
    lattice,
    least_boundary,
    separation,
    simplex,
    sphere,
    times_of_scales,
    tree,
)
from fewstep.lab.theory.mixtures import Mixture
from fewstep.metrics.intervals import NORMAL_QUANTILE, Interval, bootstrap_interval, share_interval
from fewstep.paths import Path
from fewstep.samplers import FlowSampler

FLIPS_PER_MASS = 1 / math.sqrt(2 * math.pi)
"""Of thin tubes. Where the density is even across a boundary, noise s moves int_boundary p s E|xi| across it, and the
posterior mean differs from its state by s^2 only; the tube holds 2 s int_boundary p. E|xi| / 2 = 1 / sqrt(2 pi)."""
MODE_COUNTS, SIMPLEX_COUNTS = (16, 64, 256, 1024, 4096, 16384, 100_000), (4, 16, 64, 256, 1024)
WIDEST = 3.0
"""Largest noise scale looked at, in lengths of a mode: more noise than that carries no information on the mode."""
PEAK = "mode separations per unit of noise"
STEPS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
CAPS, DRAWN_CAPS = tuple(2.0 ** (k / 2) for k in range(17)), (4.0, 8.0, 16.0, 32.0, 256.0)


def study(name: str, rows: Sequence[Row], lines: Sequence[Series], axes: Axes) -> Result:
    """What a study leaves: its ``rows``, and its ``lines`` on ``axes``."""
    return Result(name, tuple(rows), {line.label: line for line in lines}, axes)


def row(name: str, value: float, interval: Interval | None, num: int, expected: float | None = None) -> Row:
    """A line of a study, with what the theory expects."""
    return Row(name, Estimate(value, interval, num), note="" if expected is None else f"expected {expected:.4g}")


def mean_line(label: str, x: Sequence[float], table: Tensor) -> Series:
    """Means of the columns of ``table`` (E, len(x)), with normal intervals."""
    table = table.double()
    mean, reach = table.mean(0), NORMAL_QUANTILE * table.std(0) / len(table) ** 0.5
    return Series(label, tuple(map(float, x)), *(tuple(y.tolist()) for y in (mean, mean - reach, mean + reach)))


def fitted(
    name: str, statistic: Callable[[Tensor], Tensor], rows: Tensor, expected: float | None, generator: torch.Generator
) -> Row:
    """``statistic`` of (..., E, c) with the interval of a bootstrap over examples (sampling error alone)."""
    size = max(1, len(rows) // 500)  # means of groups of examples: the same mean, resampled in less time
    groups = torch.stack([group.double().mean(0) for group in rows.split(size) if len(group) == size])
    interval = bootstrap_interval(groups, statistic, 1000, generator)
    return row(name, float(statistic(rows.double())), interval, len(rows), expected)


def exponent(both: Tensor) -> Tensor:
    """Slope of least squares of log mean y over log mean x, the two halves of (..., E, 2 P)."""
    x, y = both.mean(-2).log().chunk(2, -1)
    centred = x - x.mean(-1, keepdim=True)
    return (centred * y).sum(-1) / centred.square().sum(-1)


def power_law(name: str, x: Sequence[float], table: Tensor, expected: float, generator: torch.Generator) -> Row:
    """Exponent of the means of ``table`` (E, P) over ``x`` (P,)."""
    both = torch.cat([torch.tensor(x, dtype=torch.float64).expand_as(table), table], 1)
    return fitted(name, exponent, both, expected, generator)


def exact_power_law(name: str, curve: Series, x: Sequence[float], expected: float) -> Row:
    """Exponent of a known curve over ``x``: how far a finite range is from the limit."""
    return row(name, float(exponent(torch.tensor([[*x, *curve.y]], dtype=torch.float64))), None, len(x), expected)


def flips_and_tube(law: Mixture, scales: Tensor, num: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Whether the posterior mean at noise scale s flips the readout, and whether data lie within s of a boundary.

    Two tables (E, S) bool for ``num`` data and one noise each; ``scales`` (S,).
    """
    z = law.sample(num, generator)
    noise = torch.randn(z.shape, generator=generator, dtype=z.dtype)
    token, distance = law.nearest(z)[1], boundary_distances(z, law.means)
    times = [time.expand(num) for time in times_of_scales(law.path, scales)]
    flips = [law.nearest(law.denoise(law.path.sample(z, noise, t), t))[1] != token for t in times]
    return torch.stack(flips, 1), distance[:, None] <= scales


def flips_curve(path: Path, num: int, generator: torch.Generator, num_modes: int = 32, dimension: int = 8) -> Result:
    """Theorem 3: the posterior-mean step flips tokens at the rate of the data's mass within O(s) of a boundary.

    M modes on a sphere in R^n, data of three widths. Exponent and factor are read from tubes of mass up to 0.1.
    """
    means = sphere(num_modes, dimension, generator)
    unit = separation(means)
    scales = unit * torch.logspace(-2.5, 0, 16, dtype=torch.float64)
    lines, rows = [], []

    def ratio(both: Tensor) -> Tensor:
        mass, flips = both.mean(-2).chunk(2, -1)
        return flips.sum(-1) / mass.sum(-1)

    for width in (0.15, 0.3, 0.6):  # apart, touching, overlapping
        label, law = f"width {width:g} separations", Mixture(path, means, width * unit)
        flips, inside = (table.double() for table in flips_and_tube(law, scales, num, generator))
        seen = (flips.sum(0) >= 20) & (inside.sum(0) >= 20)  # fewer say little
        lines.append(mean_line(label, inside.mean(0)[seen].tolist(), flips[:, seen]))
        thin = seen & (inside.mean(0) <= 0.1)
        if int(thin.sum()) < 2:
            continue
        both = torch.cat([inside[:, thin], flips[:, thin]], 1)
        constant = None if width == 0.15 else FLIPS_PER_MASS
        rows.append(fitted(f"exponent of T <= 0.1, {label}", exponent, both, 1.0, generator))
        rows.append(fitted(f"flips over T <= 0.1, {label}", ratio, both, constant, generator))
    ends = (min([1.0, *(x for line in lines for x in line.x)]), 1.0)
    lines.append(Series("T / sqrt(2 pi)", ends, tuple(FLIPS_PER_MASS * x for x in ends)))
    title = "Flips of the posterior mean against the mass near a boundary"
    return study("flips", rows, lines, Axes(title, "tube mass T(s)", "flip rate", log_x=True, log_y=True))


def coarea_curve(path: Path, num: int, generator: torch.Generator, num_modes: int = 8) -> Result:
    """Theorem 17 as we read it: one number is the boundary's density integral, the tube's growth, and mean stiffness.

    P = int_boundary p, for data of half a separation's width around a simplex of M modes: on the boundary itself; as
    T(r) / (2 r) of the tube; and as the mean norm of d x1_hat / d z over a separation, x1_hat the posterior mean of the
    bare modes at z with noise s.
    """
    means = simplex(num_modes)
    unit = separation(means)
    law, bare = Mixture(path, means, unit / 2), Mixture(path, means)
    radii = unit * torch.logspace(-2, -0.3, 9, dtype=torch.float64)
    z = law.sample(num, generator)
    distance = boundary_distances(z, means)
    tube = (distance[:, None] <= radii).double() / (2 * radii)
    stiffness = torch.zeros(num, len(radii), dtype=torch.float64)
    for k, (radius, time) in enumerate(zip(radii, times_of_scales(path, radii), strict=True)):
        # Beyond that the norm, about 4 exp(-separation distance / s^2) of its peak, is nothing.
        near = (distance < 20 * radius**2 / unit).nonzero()[:, 0]
        t = time.expand(len(near))
        alpha, _ = path.alpha_sigma(t, z[near])
        stiffness[near, k] = alpha[:, 0] * bare.spectral_norm(alpha * z[near], t) / unit
    boundary = boundary_densities(law, means, num, generator)[:, None].expand(-1, 2)
    x = (radii / unit).tolist()
    lines = [
        mean_line("tube mass over 2 r", x, tube),
        mean_line("mean stiffness over the separation", x, stiffness),
        mean_line("density integral of the boundary", (x[0], x[-1]), boundary),
    ]

    def second(name: str, line: Series, expected: float | None) -> Row:  # few examples lie within the first scale
        assert line.low is not None and line.high is not None
        return row(name, line.y[1], Interval(line.low[1], line.high[1]), num, expected)

    rows = [second(lines[2].label, lines[2], None)]
    rows += [second(f"{line.label}, at {x[1]:.3f}", line, lines[2].y[1]) for line in lines[:2]]
    title, x_label = "The boundary, the tube and stiffness", "radius r, or noise s, in mode separations"
    return study("coarea", rows, lines, Axes(title, x_label, "1 / length", log_x=True))


def peak_stiffness(path: Path, means: Tensor, low: float, high: float, num: int, generator: torch.Generator) -> Tensor:
    """Peak (E,) over noise scales s = sigma / alpha from ``low`` to ``high`` of sigma |d clean / dx|, for bare modes.

    Along the noising of one mode of ``means`` (M, n), in their unit. A geometric grid, then halved steps around the
    best.
    """
    mixture = Mixture(path, means)
    modes = mixture.draw_modes(num, generator)
    noise = torch.randn(modes.shape, generator=generator, dtype=torch.float64).to(means)

    def stiffness(scales: Tensor) -> Tensor:
        t = times_of_scales(path, scales)
        return path.schedule.sigma(t) * mixture.spectral_norm(path.sample(modes, noise, t), t)

    grid = torch.logspace(math.log10(low), math.log10(high), 16, dtype=torch.float64)
    best, at = torch.stack([stiffness(scale.expand(num)) for scale in grid]).max(0)
    place, step = grid[at], (high / low) ** (1 / 15)
    for _ in range(4):
        step = math.sqrt(step)
        for candidate in ((place / step).clamp(min=low), (place * step).clamp(max=high)):
            value = stiffness(candidate)
            place = torch.where(value > best, candidate, place)
            best = torch.maximum(value, best)
    return best


def modes_curve(path: Path, num: int, generator: torch.Generator, max_modes: int = 100_000) -> Result:
    """Theorem 5 as we read it: with a latent dimension of order log M, the peak grows as sqrt(log M).

    M uniform modes on the sphere of R^n, n = 5 ln M rounded up, up to ``max_modes``; and a simplex, n = M - 1. Beside
    them the least boundary that M equally likely cells of the noise can have.
    """
    lines, rows = [], []
    for label, counts in (("simplex, n = M - 1", SIMPLEX_COUNTS), ("sphere, n = 5 ln M", MODE_COUNTS)):
        sizes = [count for count in counts if count <= max_modes]
        columns = []
        for count in sizes:
            means = simplex(count) if "simplex" in label else sphere(count, math.ceil(5 * math.log(count)), generator)
            lowest = 0.3 / math.sqrt(2 * math.log(count))  # modes become distinguishable near 1 / sqrt(2 ln M)
            columns.append(peak_stiffness(path, means, lowest, WIDEST, num, generator) / separation(means))
        table, logs, half = torch.stack(columns, 1), [math.log(size) for size in sizes], len(sizes) // 2
        lines.append(mean_line(label, sizes, table))
        rows.append(power_law(f"exponent of ln M, {label}, all M", logs, table, 0.5, generator))
        rows.append(power_law(f"the same, M >= {sizes[half]}", logs[half:], table[:, half:], 0.5, generator))
    sizes = [size for size in (4, *MODE_COUNTS) if size <= max_modes]
    logs = [math.log(size) for size in sizes]
    lines.append(Series("least boundary", tuple(map(float, sizes)), tuple(map(least_boundary, sizes))))
    rows.append(exact_power_law("exponent of ln M, least boundary", lines[-1], logs, 0.5))
    title = "Peak stiffness where the dimension grows with log M"
    return study("modes", rows, lines, Axes(title, "modes M", PEAK, log_x=True))


def dimension_curve(path: Path, num: int, generator: torch.Generator, max_modes: int = 100_000) -> Result:
    """Theorem 6 as we read it: in a fixed dimension n, the peak over M modes of a lattice grows as M^(1 / n)."""
    lines, rows = [], []
    for dimension in (1, 2, 3, 4):
        largest = max_modes ** (1 / dimension)
        sides = sorted({round(4 * (largest / 4) ** (k / 5)) for k in range(6)})
        peaks = [peak_stiffness(path, lattice(side, dimension), 0.05, WIDEST, num, generator) * side for side in sides]
        sizes, table = [float(side**dimension) for side in sides], torch.stack(peaks, 1)
        lines.append(mean_line(f"lattice, n = {dimension}", sizes, table))
        rows.append(power_law(f"exponent of M, n = {dimension}", sizes, table, 1 / dimension, generator))
    axes = Axes("Peak stiffness in a fixed dimension", "modes M", PEAK, log_x=True, log_y=True)
    return study("dimension", rows, lines, axes)


def hierarchy_curve(path: Path, num: int, generator: torch.Generator, num_leaves: int = 4096) -> Result:
    """Theorem 7 as we read it: M modes as a tree of depth B, one step per level; a step's peak falls as 1 / sqrt(B).

    Each node has M^(1 / B) children, in R^48. A level is decided near the noise scale at which M^(1 / B) modes of its
    size are; its step ends at a quarter of that, where next to no example is undecided. Its stiffness is counted in
    separations of its level. The peak is the largest of the steps' means. The whole tree is the law throughout.
    """
    ratio = 1 / 16  # size of a level over that of the level above
    branchings = {depth: round(num_leaves ** (1 / depth)) for depth in (1, 2, 3, 4, 6)}
    branchings = {depth: branching for depth, branching in branchings.items() if branching**depth == num_leaves}
    highest = []
    for depth, branching in branchings.items():
        leaves = tree(depth, branching, 48, ratio, generator)
        decided = 1 / math.sqrt(2 * math.log(branching))
        apart = sum(separation(sphere(branching, 48, generator)) for _ in range(16)) / 16
        steps = []
        for level in range(depth):
            size = ratio**level
            low = decided * size / 4
            high = WIDEST if level == 0 else low / ratio
            steps.append(peak_stiffness(path, leaves, low, high, num, generator) / (apart * size))
        highest.append(max(steps, key=lambda step: float(step.mean())))
    x, table = tuple(map(float, branchings)), torch.stack(highest, 1)
    peak = mean_line(f"peak of a step, M = {num_leaves}", x, table)
    law = Series("1 / sqrt(B)", x, tuple(peak.y[0] / math.sqrt(depth) for depth in x))
    floor = Series("least boundary of a step", x, tuple(map(least_boundary, branchings.values())))
    rows = [
        power_law("exponent of B", x, table, -0.5, generator),
        exact_power_law("exponent of B, least boundary of a step", floor, x, -0.5),
    ]
    return study("hierarchy", rows, [peak, law, floor], Axes("A tree of modes, one step a level", "depth B", PEAK))


def surface_curve(path: Path, num: int, generator: torch.Generator, num_modes: int = 64, dimension: int = 16) -> Result:
    """Accuracy, depth and stiffness: the share of samples that end between modes, over steps K and a cap.

    Bare modes on a sphere, M of them in R^n; every point has the same initial noise. A sample lies between modes if it
    is more than a quarter of the separation from each. Rows: the smallest cap from which on at most a tenth does.
    """
    means = sphere(num_modes, dimension, generator)
    seed, near = int(torch.randint(2**31, (), generator=generator)), separation(means) / 4
    lines, rows = [], []
    for label, gamma in (("deterministic", 0.0), ("re-injection 1", 1.0)):
        sampler = FlowSampler(path, reinjection=gamma)
        lowest = dict.fromkeys(STEPS, 0)  # place of the smallest sufficient cap
        for place, cap in enumerate(CAPS):
            law, shares = Mixture(path, means, cap=cap), []
            for steps in STEPS:
                noise = torch.Generator().manual_seed(seed)
                x_0 = torch.randn(num, 1, dimension, generator=noise, dtype=torch.float64)
                ends = sampler.sample(law, x_0, num_steps=steps, generator=noise).x_1[:, 0]
                between = torch.cdist(ends, means).amin(1) > near
                share = float(between.double().mean())
                shares.append(Estimate(share, share_interval(between), num))
                if share > 0.1:
                    lowest[steps] = place + 1
            if cap in DRAWN_CAPS:
                lines.append(estimate_series(f"{label}, cap {cap:g}", STEPS, shares))
        rows += [
            row(f"cap for errors of 0.1, {label}, K = {steps}", CAPS[place], None, num)
            for steps, place in lowest.items()
            if place < len(CAPS)
        ]
    title = f"Samples between modes: {num_modes} modes in {dimension} dimensions"
    return study("surface", rows, lines, Axes(title, "steps K", "share of samples between modes", log_x=True))
