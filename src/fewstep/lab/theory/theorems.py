"""The theorems of arXiv:2606.30705 as we read them, in closed form: one study each, a ``Result`` with rows and curves.

The paper's constants and its unit of stiffness were not at hand. Ours is free of scale and of the path: how many mode
separations the clean estimate moves for one standard deviation of noise, sigma_t |d E[x_1 | x_t] / d x_t| / separation.
Its peak is taken along each noising x_t = alpha_t x_1 + sigma_t x_0 of one mode and one noise (every one of them has a
moment at which its mode is being decided), and averaged over these. E examples, S scales.
"""

import math
from collections.abc import Callable, Sequence

import torch
from scipy.stats import linregress
from torch import Tensor

from fewstep.diagnostics.result import Axes, Estimate, Result, Row, Series
from fewstep.lab.theory.geometry import (
    boundary_distances,
    boundary_integral,
    lattice,
    least_boundary,
    nearest_modes,
    separation,
    simplex,
    simplex_boundary,
    sphere,
    times_of_scales,
    tree,
)
from fewstep.lab.theory.mixtures import Mixture
from fewstep.metrics.intervals import NORMAL_QUANTILE, Interval, bootstrap_interval, share_of
from fewstep.paths import Path
from fewstep.samplers import FlowSampler

NUM_RESAMPLES, MAX_ROWS = 1000, 500

# Theorems 3 and 17
WIDTHS = (0.15, 0.3, 0.6)
"""Widths of the data, in mode separations: apart, touching, overlapping."""
SMALL_MASS = 0.1
"""Tubes of less mass than that are thin: the constant is read from them."""
MIN_SEEN = 20
"""Fewest flips, and fewest data in the tube, for a point to be shown."""
FLIPS_PER_MASS = 1 / math.sqrt(2 * math.pi)
"""Of thin tubes. Where the density is even across a boundary, noise s moves int_boundary p s E|xi| across it, and the
posterior mean differs from its state by s^2 only; the tube holds 2 s int_boundary p. E|xi| / 2 = 1 / sqrt(2 pi)."""
LAYER = 20
"""Half the width of the layer in which a soft readout moves, in s^2 / separation; e^-20 of its slope is left out."""

# Theorems 5 to 7
MODE_COUNTS = (16, 64, 256, 1024, 4096, 16384, 100_000)
SIMPLEX_COUNTS = (4, 16, 64, 256, 1024)
DIMENSIONS = (1, 2, 3, 4)
DEPTHS = (1, 2, 3, 4, 6)
SURE = 0.25
"""At that share of the noise scale at which modes are distinguishable, they are decided."""
COARSE, HALVINGS = 16, 4
WIDEST = 3.0
"""Largest noise scale looked at, in lengths of a mode: more noise than that carries no information on the mode."""

# Accuracy, depth and stiffness
STEPS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
CAPS = tuple(2.0 ** (k / 2) for k in range(17))
DRAWN_CAPS = (4.0, 8.0, 16.0, 32.0, 256.0)
LEVEL = 0.1
"""Share of samples between modes, for which the smallest sufficient cap is listed."""


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
    size = max(1, len(rows) // MAX_ROWS)  # means of groups of examples: the same mean, resampled in less time
    groups = torch.stack([group.double().mean(0) for group in rows.split(size) if len(group) == size])
    interval = bootstrap_interval(groups, statistic, NUM_RESAMPLES, generator, batched=True)
    return row(name, float(statistic(rows.double())), interval, len(rows), expected)


def power_law(name: str, x: Sequence[float], table: Tensor, expected: float, generator: torch.Generator) -> Row:
    """Exponent of the means of ``table`` (E, P) over ``x`` (P,): slope of least squares between the logarithms."""
    log_x = torch.tensor(x, dtype=torch.float64).log()
    return fitted(name, lambda rows: _slope(log_x, rows.mean(-2).log()), table, expected, generator)


def exact_power_law(name: str, x: Sequence[float], y: Sequence[float], expected: float) -> Row:
    """The same of a curve that is known: how far a finite range is from the limit."""
    exponent = linregress([math.log(value) for value in x], [math.log(value) for value in y]).slope
    return row(name, float(exponent), None, len(x), expected)


def _slope(x: Tensor, y: Tensor) -> Tensor:
    """Slope of least squares of ``y`` (..., P) over ``x`` (..., P)."""
    centred = x - x.mean(-1, keepdim=True)
    return (centred * y).sum(-1) / centred.square().sum(-1)


def _exponent(rows: Tensor) -> Tensor:
    """Slope of log mean y over log mean x, the two halves of (..., E, 2 P)."""
    x, y = rows.mean(-2).log().chunk(2, -1)
    return _slope(x, y)


def _ratio(rows: Tensor) -> Tensor:
    """Sum of y over the sum of x, of the same."""
    x, y = rows.mean(-2).chunk(2, -1)
    return y.sum(-1) / x.sum(-1)


def flips_and_tube(law: Mixture, scales: Tensor, num: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Whether the posterior mean at noise scale s flips the readout, and whether data lie within s of a boundary.

    Two tables (E, S) bool for ``num`` data and one noise each; ``scales`` (S,).
    """
    z = law.sample(num, generator)
    noise = torch.randn(z.shape, generator=generator, dtype=z.dtype)
    token, distance = nearest_modes(z, law.means), boundary_distances(z, law.means)
    times = [time.expand(num) for time in times_of_scales(law.path, scales)]
    flips = [nearest_modes(law.denoise(law.path.sample(z, noise, t), t), law.means) != token for t in times]
    return torch.stack(flips, 1), distance[:, None] <= scales


def flips_curve(path: Path, num: int, generator: torch.Generator, num_modes: int = 32, dimension: int = 8) -> Result:
    """Theorem 3: the posterior-mean step flips tokens at the rate of the data's mass within O(s) of a boundary.

    M modes on a sphere in R^n, data of three widths around them. Each line is flip rate over tube mass T(s), one point
    a noise scale s; the law is a slope of 1. For overlapping data and thin tubes the factor is 1 / sqrt(2 pi).
    """
    means = sphere(num_modes, dimension, generator)
    unit = separation(means)
    scales = unit * torch.logspace(-2.5, 0, 16, dtype=torch.float64)
    lines, rows = [], []
    for width in WIDTHS:
        label, law = f"width {width:g} separations", Mixture(path, means, width * unit)
        flips, inside = (table.double() for table in flips_and_tube(law, scales, num, generator))
        seen = (flips.sum(0) >= MIN_SEEN) & (inside.sum(0) >= MIN_SEEN)
        lines.append(mean_line(label, inside.mean(0)[seen].tolist(), flips[:, seen]))
        thin = seen & (inside.mean(0) <= SMALL_MASS)
        if int(thin.sum()) < 2:
            continue
        both = torch.cat([inside[:, thin], flips[:, thin]], 1)
        constant = None if width == WIDTHS[0] else FLIPS_PER_MASS
        rows.append(fitted(f"exponent of T <= {SMALL_MASS:g}, {label}", _exponent, both, 1.0, generator))
        rows.append(fitted(f"flips over T <= {SMALL_MASS:g}, {label}", _ratio, both, constant, generator))
    ends = (min([1.0, *(x for line in lines for x in line.x)]), 1.0)
    lines.append(Series("T / sqrt(2 pi)", ends, tuple(FLIPS_PER_MASS * x for x in ends)))
    title = "Flips of the posterior mean against the mass near a boundary"
    return _result("flips", rows, lines, Axes(title, "tube mass T(s)", "flip rate", log_x=True, log_y=True))


def coarea_curve(path: Path, num: int, generator: torch.Generator, num_modes: int = 8, width: float = 0.5) -> Result:
    """Theorem 17 as we read it: one number is the boundary's density integral, the tube's growth, and mean stiffness.

    P = int_boundary p, for data of ``width`` separations around a simplex of M modes, estimated three ways: on the
    boundary itself; as T(r) / (2 r) of the tube; and as the mean norm of d x1_hat / d z over a separation, x1_hat the
    posterior mean of the bare modes at z with noise s. A soft readout moves by one separation in crossing a boundary
    however fast it does, so E|d x1_hat / d z| = separation P (coarea formula, for thin layers).
    """
    means = simplex(num_modes)
    unit = separation(means)
    law, bare = Mixture(path, means, width * unit), Mixture(path, means)
    radii = unit * torch.logspace(-2, -0.3, 9, dtype=torch.float64)
    z = law.sample(num, generator)
    distance = boundary_distances(z, means)
    tube = (distance[:, None] <= radii).double() / (2 * radii)
    stiffness = torch.zeros(num, len(radii), dtype=torch.float64)
    for k, (radius, time) in enumerate(zip(radii, times_of_scales(path, radii), strict=True)):
        # Beyond that the norm, about 4 exp(-separation distance / s^2) of its peak, is nothing.
        near = (distance < LAYER * radius**2 / unit).nonzero()[:, 0]
        t = time.expand(len(near))
        alpha, _ = path.alpha_sigma(t, z[near])
        stiffness[near, k] = alpha[:, 0] * bare.spectral_norm(alpha * z[near], t) / unit
    exact, interval = boundary_integral(law, means, num, generator)
    x = (radii / unit).tolist()
    lines = [
        mean_line("tube mass over 2 r", x, tube),
        mean_line("mean stiffness over the separation", x, stiffness),
        Series(
            "density integral of the boundary", (x[0], x[-1]), *((y,) * 2 for y in (exact, interval.low, interval.high))
        ),
    ]
    thin = 1  # the second scale: few examples lie within the first
    rows = [row("density integral of the boundary", exact, interval, num)]
    for line in lines[:2]:
        assert line.low is not None and line.high is not None
        bounds = Interval(line.low[thin], line.high[thin])
        rows.append(row(f"{line.label}, at {x[thin]:.3f}", line.y[thin], bounds, num, exact))
    axes = Axes(
        "The boundary, the tube and stiffness",
        "radius r, or noise s, in mode separations",
        "1 / length",
        log_x=True,
    )
    return _result("coarea", rows, lines, axes)


def peak_stiffness(path: Path, means: Tensor, low: float, high: float, num: int, generator: torch.Generator) -> Tensor:
    """Peak (E,) over noise scales s = sigma / alpha from ``low`` to ``high`` of sigma |d clean / dx|, for bare modes.

    In the unit of ``means`` (M, n). A geometric grid, then halved steps around each example's best.
    """
    mixture = Mixture(path, means)
    modes = means[mixture.draw_modes(num, generator)]
    noise = torch.randn(modes.shape, generator=generator, dtype=torch.float64).to(means)

    def stiffness(scales: Tensor) -> Tensor:
        t = times_of_scales(path, scales)
        return path.schedule.sigma(t) * mixture.spectral_norm(path.sample(modes, noise, t), t)

    grid = torch.logspace(math.log10(low), math.log10(high), COARSE, dtype=torch.float64)
    best, at = torch.stack([stiffness(scale.expand(num)) for scale in grid]).max(0)
    place, step = grid[at], (high / low) ** (1 / (COARSE - 1))
    for _ in range(HALVINGS):
        step = math.sqrt(step)
        for candidate in ((place / step).clamp(min=low), (place * step).clamp(max=high)):
            value = stiffness(candidate)
            place = torch.where(value > best, candidate, place)
            best = torch.maximum(value, best)
    return best


def modes_curve(path: Path, num: int, generator: torch.Generator, max_modes: int = 100_000) -> Result:
    """Theorem 5 as we read it: with a latent dimension of order log M, the peak grows as sqrt(log M).

    M uniform modes on the sphere of R^n, n = 5 ln M rounded up, up to ``max_modes``; and a simplex, n = M - 1. Beside
    them the boundary between M equally likely cells of the noise, in closed form: what a simplex has, and the least
    that any M cells in any dimension can have. A map from noise to modes moves by a separation at each crossing, so its
    mean stiffness is at least that (coarea). This holds for the whole map: one step's may lie below.
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
    for label, boundary in (("boundary of a simplex's cells", simplex_boundary), ("least boundary", least_boundary)):
        lines.append(Series(label, tuple(map(float, sizes)), tuple(map(boundary, sizes))))
        rows.append(exact_power_law(f"exponent of ln M, {label}", logs, lines[-1].y, 0.5))
    title = "Peak stiffness where the dimension grows with log M"
    return _result("modes", rows, lines, Axes(title, "modes M", "mode separations per unit of noise", log_x=True))


def dimension_curve(path: Path, num: int, generator: torch.Generator, max_modes: int = 100_000) -> Result:
    """Theorem 6 as we read it: in a fixed dimension n, the peak over M modes of a lattice grows as M^(1 / n)."""
    lines, rows = [], []
    for dimension in DIMENSIONS:
        largest = max_modes ** (1 / dimension)
        sides = sorted({round(4 * (largest / 4) ** (k / 5)) for k in range(6)})
        peaks = [peak_stiffness(path, lattice(side, dimension), 0.05, WIDEST, num, generator) * side for side in sides]
        sizes, table = [float(side**dimension) for side in sides], torch.stack(peaks, 1)
        lines.append(mean_line(f"lattice, n = {dimension}", sizes, table))
        rows.append(power_law(f"exponent of M, n = {dimension}", sizes, table, 1 / dimension, generator))
    title = "Peak stiffness in a fixed dimension"
    axes = Axes(title, "modes M", "mode separations per unit of noise", log_x=True, log_y=True)
    return _result("dimension", rows, lines, axes)


def hierarchy_curve(
    path: Path, num: int, generator: torch.Generator, num_leaves: int = 4096, ratio: float = 1 / 16
) -> Result:
    """Theorem 7 as we read it: M modes as a tree of depth B, one step per level; a step's peak falls as 1 / sqrt(B).

    Each node has M^(1 / B) children at ``ratio`` times the distance of the level above, in R^48. Level l is decided
    near the noise scale at which M^(1 / B) modes of its size are; its step ends at a quarter of that, where next to no
    example is undecided, and the next begins there. Its stiffness is counted in separations of its own level. The peak
    is the largest of the steps' means. The whole tree is the law throughout: a step does not know the parent.
    """
    depths = [depth for depth in DEPTHS if round(num_leaves ** (1 / depth)) ** depth == num_leaves]
    highest = []
    for depth in depths:
        branching = round(num_leaves ** (1 / depth))
        leaves = tree(depth, branching, 48, ratio, generator)
        decided = 1 / math.sqrt(2 * math.log(branching))
        apart = sum(separation(sphere(branching, 48, generator)) for _ in range(16)) / 16
        steps = []
        for level in range(depth):
            size = ratio**level
            low = SURE * decided * size
            high = WIDEST if level == 0 else low / ratio
            steps.append(peak_stiffness(path, leaves, low, high, num, generator) / (apart * size))
        highest.append(max(steps, key=lambda step: float(step.mean())))
    x, table = tuple(map(float, depths)), torch.stack(highest, 1)
    first = float(table[:, 0].mean())
    floor = Series("least boundary of a step", x, tuple(least_boundary(round(num_leaves ** (1 / b))) for b in depths))
    law = Series("1 / sqrt(B)", x, tuple(first / math.sqrt(depth) for depth in depths))
    rows = [
        power_law("exponent of B", x, table, -0.5, generator),
        exact_power_law("exponent of B, least boundary of a step", x, floor.y, -0.5),
    ]
    lines = [mean_line(f"peak of a step, M = {num_leaves}", x, table), law, floor]
    title = "A tree of modes, one step a level"
    return _result("hierarchy", rows, lines, Axes(title, "depth B", "mode separations per unit of noise"))


@torch.no_grad()
def final_states(
    sampler: FlowSampler, model: Mixture, num_steps: int, num_samples: int, generator: torch.Generator
) -> Tensor:
    """Where ``num_samples`` samples end, (N, n)."""
    x_0 = torch.randn(num_samples, 1, model.means.shape[1], generator=generator, dtype=model.means.dtype)
    return sampler.sample(model, x_0, num_steps=num_steps, generator=generator).x_1[:, 0]


def surface_curve(path: Path, num: int, generator: torch.Generator, num_modes: int = 64, dimension: int = 16) -> Result:
    """Accuracy, depth and stiffness: the share of samples that end between modes, over steps K and a cap.

    Bare modes on a sphere, M of them in R^n, without and with re-injection; every point has the same initial noise. A
    sample lies between modes if it is more than a quarter of the separation from each. The cap bounds |d clean / dx|
    at every state (:class:`Mixture`). Rows: the smallest cap from which on at most :data:`LEVEL` of the samples fail.
    """
    means = sphere(num_modes, dimension, generator)
    seed, near = int(torch.randint(2**31, (), generator=generator)), separation(means) / 4
    lines, rows = [], []
    for label, gamma in (("deterministic", 0.0), ("re-injection 1", 1.0)):
        sampler = FlowSampler(path, reinjection=gamma)
        shares = {}
        for cap in CAPS:
            law = Mixture(path, means, cap=cap)
            for steps in STEPS:
                ends = final_states(sampler, law, steps, num, torch.Generator().manual_seed(seed))
                shares[cap, steps] = share_of(torch.cdist(ends, means).amin(1) > near)
        for cap in DRAWN_CAPS:
            along = [shares[cap, steps] for steps in STEPS]
            y, low, high = zip(
                *((share.value, share.interval.low, share.interval.high) for share in along), strict=True
            )
            lines.append(Series(f"{label}, cap {cap:g}", tuple(map(float, STEPS)), y, low, high))
        for steps in STEPS:
            failing = max((cap for cap in CAPS if shares[cap, steps].value > LEVEL), default=0.0)
            enough = [cap for cap in CAPS if cap > failing]
            if enough:
                rows.append(row(f"cap for errors of {LEVEL:g}, {label}, K = {steps}", enough[0], None, num))
    title = f"Samples between modes: {num_modes} modes in {dimension} dimensions"
    return _result("surface", rows, lines, Axes(title, "steps K", "share of samples between modes", log_x=True))


def _result(name: str, rows: Sequence[Row], lines: Sequence[Series], axes: Axes) -> Result:
    return Result(name, tuple(rows), {line.label: line for line in lines}, axes)
