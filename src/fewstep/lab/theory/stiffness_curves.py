"""Theorems 5 to 7 of arXiv:2606.30705 in closed form: how stiff a step has to be to tell M modes apart.

The paper's constants and its unit of stiffness were not at hand. Ours is free of scale and of the path: how many mode
separations the clean estimate moves for one standard deviation of noise, sigma_t |d E[x_1 | x_t] / d x_t| / separation.
Its peak is taken along each noising x_t = alpha_t x_1 + sigma_t x_0 of one mode and one noise (every one of them has a
moment at which its mode is being decided), and averaged over these. E examples.
"""

import math

import torch
from torch import Tensor

from fewstep.lab.theory.cells import least_boundary, simplex_boundary
from fewstep.lab.theory.curves import Curve, Line, exact_power_law, mean_line, power_law
from fewstep.lab.theory.mixtures import Mixture
from fewstep.lab.theory.modes import lattice, separation, simplex, sphere, times_of_scales, tree
from fewstep.paths import Path

MODE_COUNTS = (16, 64, 256, 1024, 4096, 16384, 100_000)
SIMPLEX_COUNTS = (4, 16, 64, 256, 1024)
DIMENSIONS = (1, 2, 3, 4)
DEPTHS = (1, 2, 3, 4, 6)
SURE = 0.25
"""At that share of the noise scale at which modes are distinguishable, they are decided."""
COARSE, HALVINGS = 16, 4
WIDEST = 3.0
"""Largest noise scale looked at, in lengths of a mode: more noise than that carries no information on the mode."""


def peak_stiffness(path: Path, means: Tensor, low: float, high: float, num: int, generator: torch.Generator) -> Tensor:
    """Peak (E,) over noise scales s = sigma / alpha from ``low`` to ``high`` of sigma |d clean / dx|, for bare modes.

    In the unit of ``means`` (M, n). A geometric grid, then halved steps around each example's best.
    """
    mixture = Mixture(path, means)
    modes = means[mixture.draw_modes(num, generator)]
    noise = torch.randn(modes.shape, generator=generator, dtype=torch.float64).to(means)

    def stiffness(scales: Tensor) -> Tensor:
        t = times_of_scales(path, scales)
        sigma = path.schedule.sigma(t).to(means)
        return sigma * mixture.spectral_norm(path.sample(modes, noise, t), t, "clean")

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


def modes_curve(path: Path, *, num: int, max_modes: int = 100_000, generator: torch.Generator) -> Curve:
    """Theorem 5 as we read it: with a latent dimension of order log M, the peak grows as sqrt(log M).

    M uniform modes on the sphere of R^n, n = 5 ln M rounded up, up to ``max_modes``; and a simplex, n = M - 1. Beside
    them the boundary between M equally likely cells of the noise, in closed form: what a simplex has, and the least
    that any M cells in any dimension can have. A map from noise to modes moves by a separation at each crossing, so its
    mean stiffness is at least that (coarea). This holds for the whole map: one step's may lie below.
    """
    measured = {}
    for label, counts in (("simplex, n = M - 1", SIMPLEX_COUNTS), ("sphere, n = 5 ln M", MODE_COUNTS)):
        sizes = [count for count in counts if count <= max_modes]
        columns = []
        for count in sizes:
            means = simplex(count) if "simplex" in label else sphere(count, math.ceil(5 * math.log(count)), generator)
            lowest = 0.3 / math.sqrt(2 * math.log(count))  # modes become distinguishable near 1 / sqrt(2 ln M)
            peaks = peak_stiffness(path, means.float(), lowest, WIDEST, num, generator)
            columns.append(peaks / separation(means))
        measured[label] = (sizes, torch.stack(columns, 1))
    lines, fits = [], []
    for label, (sizes, table) in measured.items():
        logs = [math.log(size) for size in sizes]
        lines.append(mean_line(label, list(map(float, sizes)), table))
        fits.append(power_law(f"exponent of ln M, {label}, all M", logs, table, 0.5, generator))
        half = len(sizes) // 2
        fits.append(power_law(f"the same, M >= {sizes[half]}", logs[half:], table[:, half:], 0.5, generator))
    sizes = [size for size in (4, *MODE_COUNTS) if size <= max_modes]
    for label, boundary in (("boundary of a simplex's cells", simplex_boundary), ("least boundary", least_boundary)):
        lines.append(Line(label, tuple(map(float, sizes)), tuple(map(boundary, sizes))))
        logs = [math.log(size) for size in sizes]
        fits.append(exact_power_law(f"exponent of ln M, {label}", logs, lines[-1].y, 0.5))
    title = "Peak stiffness where the dimension grows with log M"
    return Curve(
        "modes", title, "modes M", "mode separations per unit of noise", tuple(lines), tuple(fits), log_y=False
    )


def dimension_curve(path: Path, *, num: int, max_modes: int = 100_000, generator: torch.Generator) -> Curve:
    """Theorem 6 as we read it: in a fixed dimension n, the peak over M modes of a lattice grows as M^(1 / n)."""
    lines, fits = [], []
    for dimension in DIMENSIONS:
        largest = max_modes ** (1 / dimension)
        sides = sorted({round(4 * (largest / 4) ** (k / 5)) for k in range(6)})
        columns = []
        for side in sides:
            # In double precision: a line of 1e5 modes differs in its last digits.
            means = lattice(side, dimension)
            columns.append(peak_stiffness(path, means, 0.05, WIDEST, num, generator) * side)
        sizes, table = [float(side**dimension) for side in sides], torch.stack(columns, 1)
        lines.append(mean_line(f"lattice, n = {dimension}", sizes, table))
        fits.append(power_law(f"exponent of M, n = {dimension}", sizes, table, 1 / dimension, generator))
    title = "Peak stiffness in a fixed dimension"
    return Curve("dimension", title, "modes M", "mode separations per unit of noise", tuple(lines), tuple(fits))


def hierarchy_curve(
    path: Path, *, num: int, num_leaves: int = 4096, ratio: float = 1 / 16, generator: torch.Generator
) -> Curve:
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
    table = torch.stack(highest, 1)
    fits = [power_law("exponent of B", list(map(float, depths)), table, -0.5, generator)]
    first = float(table[:, 0].mean())
    x = tuple(map(float, depths))
    floor = Line("least boundary of a step", x, tuple(least_boundary(round(num_leaves ** (1 / b))) for b in depths))
    law = Line("1 / sqrt(B)", x, tuple(first / math.sqrt(depth) for depth in depths))
    lines = (mean_line(f"peak of a step, M = {num_leaves}", list(x), table), law, floor)
    fits.append(exact_power_law("exponent of B, least boundary of a step", x, floor.y, -0.5))
    title, y_label = "A tree of modes, one step a level", "mode separations per unit of noise"
    return Curve("hierarchy", title, "depth B", y_label, lines, tuple(fits), log_x=False, log_y=False)
