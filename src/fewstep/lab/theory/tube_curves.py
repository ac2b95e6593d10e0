"""Theorems 3 and 17 of arXiv:2606.30705 in closed form: flips against the tube, and the tube against stiffness.

Both are about data that overlap: Gaussians of width h around M modes, read by the nearest mode. E examples, S scales.
"""

import math

import torch
from torch import Tensor

from fewstep.lab.theory.cells import boundary_distances, boundary_integral, nearest_modes
from fewstep.lab.theory.curves import Curve, Fit, Line, log_log_slope, mean_line, ratio
from fewstep.lab.theory.mixtures import Mixture
from fewstep.lab.theory.modes import separation, simplex, sphere, times_of_scales
from fewstep.metrics.intervals import Interval
from fewstep.paths import Path

WIDTHS = (0.15, 0.3, 0.6)
"""Widths of the data, in mode separations: apart, touching, overlapping."""
SMALL_MASS = 0.1
"""Tubes of less mass than that are thin: c is read from them."""
MIN_SEEN = 20
"""Fewest flips, and fewest data in the tube, for a point to be shown."""
FLIPS_PER_MASS = 1 / math.sqrt(2 * math.pi)
"""Of thin tubes. Where the density is even across a boundary, noise s moves int_boundary p s E|xi| across it, and the
posterior mean differs from its state by s^2 only; the tube holds 2 s int_boundary p. E|xi| / 2 = 1 / sqrt(2 pi)."""


def flips_and_tube(law: Mixture, scales: Tensor, num: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Whether the posterior mean at noise scale s flips the readout, and whether data lie within s of a boundary.

    Two tables (E, S) bool for ``num`` data and one noise each; ``scales`` (S,).
    """
    z = law.sample(num, generator)
    noise = torch.randn(z.shape, generator=generator, dtype=z.dtype)
    token, distance = nearest_modes(z, law.means), boundary_distances(z, law.means)
    flips = []
    for time in times_of_scales(law.path, scales):
        t = time.expand(num)
        flips.append(nearest_modes(law.denoise(law.path.sample(z, noise, t), t), law.means) != token)
    return torch.stack(flips, 1), distance[:, None] <= scales


def flips_curve(path: Path, *, num: int, num_modes: int = 32, dimension: int = 8, generator: torch.Generator) -> Curve:
    """Theorem 3: the posterior-mean step flips tokens at the rate of the data's mass within O(s) of a boundary.

    M modes on a sphere in R^n, data of three widths around them. Each line is flip rate over tube mass T(s), one point
    a noise scale s; the law is a slope of 1. For overlapping data and thin tubes the factor is 1 / sqrt(2 pi).
    """
    means = sphere(num_modes, dimension, generator)
    unit = separation(means)
    scales = unit * torch.logspace(-2.5, 0, 16, dtype=torch.float64)
    lines, fits = [], []
    for width in WIDTHS:
        label, law = f"width {width:g} separations", Mixture(path, means, width * unit)
        flips, inside = (table.double() for table in flips_and_tube(law, scales, num, generator))
        seen = (flips.sum(0) >= MIN_SEEN) & (inside.sum(0) >= MIN_SEEN)
        lines.append(mean_line(label, inside.mean(0)[seen].tolist(), flips[:, seen]))
        thin = seen & (inside.mean(0) <= SMALL_MASS)
        if int(thin.sum()) > 1:
            x, y = inside[:, thin], flips[:, thin]
            factor = None if width == WIDTHS[0] else FLIPS_PER_MASS
            fits.append(log_log_slope(f"exponent of T <= {SMALL_MASS:g}, {label}", x, y, 1.0, generator))
            fits.append(ratio(f"flips over T <= {SMALL_MASS:g}, {label}", x, y, factor, generator))
    ends = (min([1.0, *(x for line in lines for x in line.x)]), 1.0)
    lines.append(Line("T / sqrt(2 pi)", ends, tuple(FLIPS_PER_MASS * x for x in ends)))
    title = "Flips of the posterior mean against the mass near a boundary"
    return Curve("flips", title, "tube mass T(s)", "flip rate", tuple(lines), tuple(fits))


LAYER = 20
"""Half the width of the layer in which a soft readout moves, in s^2 / separation; e^-20 of its slope is left out."""


def coarea_curve(path: Path, *, num: int, num_modes: int = 8, width: float = 0.5, generator: torch.Generator) -> Curve:
    """Theorem 17 as we read it: one number is the boundary's density integral, the tube's growth, and mean stiffness.

    P = int_boundary p, for data of ``width`` separations around a simplex of M modes, estimated three ways: on the
    boundary itself; as T(r) / (2 r) of the tube; and as the mean norm of d x1_hat / d z over a separation, x1_hat the
    posterior mean of the bare modes at z with noise s. A soft readout moves by one separation in crossing a boundary
    however fast it does, so E|d x1_hat / d z| = separation P (coarea formula, for thin layers).
    """
    means = simplex(num_modes)
    unit = separation(means)
    law = Mixture(path, means, width * unit)
    radii = unit * torch.logspace(-2, -0.3, 9, dtype=torch.float64)
    z = law.sample(num, generator)
    distance = boundary_distances(z, means)
    tube = (distance[:, None] <= radii).double() / (2 * radii)
    bare, stiffness = Mixture(path, means), torch.zeros(num, len(radii), dtype=torch.float64)
    for k, (radius, time) in enumerate(zip(radii, times_of_scales(path, radii), strict=True)):
        # Beyond that the norm, about 4 exp(-separation distance / s^2) of its peak, is nothing.
        near = (distance < LAYER * radius**2 / unit).nonzero()[:, 0]
        t = time.expand(len(near))
        alpha, _ = path.alpha_sigma(t, z[near])
        stiffness[near, k] = alpha[:, 0] * bare.spectral_norm(alpha * z[near], t, "clean") / unit
    exact = boundary_integral(law, means, num, generator)
    x = (radii / unit).tolist()
    level = [torch.full((2,), value) for value in (exact.value, exact.interval.low, exact.interval.high)]
    on_boundary = Line("density integral of the boundary", (x[0], x[-1]), *(tuple(ends.tolist()) for ends in level))
    lines = (
        mean_line("tube mass over 2 r", x, tube),
        mean_line("mean stiffness over the separation", x, stiffness),
        on_boundary,
    )
    thin = 1  # the second scale: few examples lie within the first
    fits = [Fit("density integral of the boundary", exact.value, exact.interval)]
    for line in lines[:2]:
        assert line.low is not None and line.high is not None
        interval = Interval(line.low[thin], line.high[thin])
        fits.append(Fit(f"{line.label}, at {x[thin]:.3f}", line.y[thin], interval, exact.value))
    title = "The boundary, the tube and stiffness"
    return Curve(
        "coarea", title, "radius r, or noise s, in mode separations", "1 / length", lines, tuple(fits), log_y=False
    )
