"""Where modes lie, and the cells that a nearest-mode readout gives them. M modes in R^n (M, n) float64, N points.

The density integral of the boundary between cells, int_boundary p dH^(n-1), is what the tube mass grows by, on each
side, and what a map's mean stiffness cannot fall below (arXiv:2606.30705, Theorem 17 as we read it).
"""

import math

import torch
from scipy.integrate import quad
from scipy.stats import norm
from torch import Tensor

from fewstep.lab.theory.mixtures import Mixture
from fewstep.metrics.intervals import NORMAL_QUANTILE, Interval
from fewstep.paths import Path

NEAREST_OF = 1024
"""Modes whose nearest neighbour is looked for; of more, that many spread evenly."""


def simplex(num_modes: int) -> Tensor:
    """M >= 2 unit vectors of R^(M-1) with equal distances sqrt(2 M / (M - 1)).

    The corners of the standard simplex, in an orthonormal basis of its plane (a Householder reflection's columns).
    """
    axis = torch.full((num_modes,), 1 / math.sqrt(num_modes), dtype=torch.float64)
    axis[0] -= 1
    reflection = torch.eye(num_modes, dtype=torch.float64) - 2 * torch.outer(axis, axis) / axis.square().sum()
    return reflection[:, 1:] * math.sqrt(num_modes / (num_modes - 1))


def sphere(num_modes: int, dimension: int, generator: torch.Generator) -> Tensor:
    """M independent uniform unit vectors of R^n."""
    drawn = torch.randn(num_modes, dimension, generator=generator, dtype=torch.float64)
    return drawn / drawn.norm(dim=1, keepdim=True)


def lattice(side: int, dimension: int) -> Tensor:
    """The side^n points of the cubic lattice of spacing 1 / side in the unit cube around 0."""
    ticks = (torch.arange(side, dtype=torch.float64) + 0.5) / side - 0.5
    return torch.cartesian_prod(*[ticks] * dimension).reshape(-1, dimension)


def tree(depth: int, branching: int, dimension: int, ratio: float, generator: torch.Generator) -> Tensor:
    """Leaves of a random tree, branching^depth of them, those of one node next to each other.

    A child lies from its parent ratio^level in an independent uniform direction, level 0 .. depth - 1.
    """
    leaves = torch.zeros(1, dimension, dtype=torch.float64)
    for level in range(depth):
        offsets = sphere(len(leaves) * branching, dimension, generator)
        leaves = leaves.repeat_interleave(branching, 0) + ratio**level * offsets
    return leaves


def separation(means: Tensor) -> float:
    """Median distance from a mode of ``means`` (M, n), M >= 2, to the nearest other one."""
    picked = torch.linspace(0, len(means) - 1, min(len(means), NEAREST_OF)).round().long()
    distances = torch.cdist(means[picked], means)
    distances[torch.arange(len(picked)), picked] = math.inf
    return float(distances.amin(1).median())


def times_of_scales(path: Path, scales: Tensor) -> Tensor:
    """Times at which sigma / alpha equals ``scales`` (any shape, > 0), by bisection of all at once: it falls with t."""
    low, high = torch.zeros_like(scales), torch.ones_like(scales)
    for _ in range(60):
        middle = (low + high) / 2
        noisy = path.schedule.sigma(middle) > scales * path.schedule.alpha(middle)
        low, high = torch.where(noisy, middle, low), torch.where(noisy, high, middle)
    return (low + high) / 2


def nearest_modes(x: Tensor, means: Tensor) -> Tensor:
    """Index (N,) of the mode of ``means`` (M, n) nearest to ``x`` (N, ...)."""
    return _closeness(x, means).argmax(1)


def boundary_distances(x: Tensor, means: Tensor) -> Tensor:
    """Exact distance (N,) from ``x`` (N, n) to the boundary of its cell; M n products a point.

    Cells are convex: the nearest of the planes that bound the cell. With c the closeness of a mode, the plane to mode
    j is (c_i - c_j) / |mu_i - mu_j| away.
    """
    close = _closeness(x, means)
    own = close.argmax(1, keepdim=True)
    apart = torch.cdist(means[own[:, 0]], means).scatter(1, own, math.inf)
    gaps = (close.gather(1, own) - close).scatter(1, own, math.inf)
    return torch.where(apart.isfinite(), gaps / apart, math.inf).amin(1)


def _closeness(x: Tensor, means: Tensor) -> Tensor:
    """x . mu - |mu|^2 / 2 (N, M), largest for the nearest mode; half the squared distance up to a term of x alone."""
    return x.flatten(1).to(means) @ means.T - means.square().sum(1) / 2


def boundary_integral(
    law: Mixture, means: Tensor, num_samples: int, generator: torch.Generator
) -> tuple[float, Interval]:
    """Density of ``law``'s data, of width h > 0, integrated over the boundary between the cells of ``means`` (M, n).

    The face of modes i and j lies in a plane. There the law has the one-dimensional density sum_k w_k phi_h(distance
    of its k-th mode from the plane), and given a point in the plane and k, the point is Gaussian within it: a draw of
    the law around k, moved into the plane. So a draw of pair, k and point counts its density where i and j are the
    nearest modes. With a normal interval. Raises ValueError for a law of width 0.
    """
    if law.width <= 0:
        raise ValueError("the law has width 0: point masses have no density on a boundary, pass a width above 0.")
    first, second = torch.triu_indices(len(means), len(means), 1)
    pair = torch.randint(len(first), (num_samples,), generator=generator)
    mu_i, mu_j = means[first[pair]], means[second[pair]]
    apart = (mu_j - mu_i).norm(dim=1, keepdim=True)
    normal, middle = (mu_j - mu_i) / apart, (mu_i + mu_j) / 2
    centre = law.means[law.draw_modes(num_samples, generator)]
    noise = torch.randn(centre.shape, generator=generator, dtype=centre.dtype)
    offset = ((centre - middle) * normal).sum(1)
    in_plane = centre + law.width * noise
    in_plane = in_plane - ((in_plane - middle) * normal).sum(1, keepdim=True) * normal
    close = _closeness(in_plane, means)
    level = close.gather(1, first[pair][:, None])[:, 0]
    rivals = close.scatter(1, torch.stack([first[pair], second[pair]], 1), -math.inf).amax(1)
    density = (-((offset / law.width) ** 2) / 2).exp() / (law.width * math.sqrt(2 * math.pi))
    values = len(first) * torch.where(level >= rivals, density, 0.0)
    value, reach = float(values.mean()), NORMAL_QUANTILE * float(values.std()) / math.sqrt(num_samples)
    return value, Interval(value - reach, value + reach)


def simplex_boundary(num_modes: int) -> float:
    """Boundary integral of standard normal noise between the cells of M equally distant modes around 0.

    The noise of such a cell in M coordinates is where one coordinate leads, so it is
    M (M - 1) / sqrt(2) int phi(u)^2 Phi(u)^(M - 2) du, close to sqrt(ln M).
    """

    def density(u: float) -> float:
        return math.exp(2 * norm.logpdf(u) + (num_modes - 2) * norm.logcdf(u))

    return num_modes * (num_modes - 1) / math.sqrt(2) * quad(density, -10, 10, points=[0, 2, 4, 6], epsrel=1e-10)[0]


def least_boundary(num_modes: int) -> float:
    """No partition of standard normal noise, in any dimension, into M equally likely cells has less boundary.

    Gaussian isoperimetry (Borell 1975, Sudakov and Tsirelson 1978): a cell of mass 1 / M has at least the boundary
    phi(Phi^-1(1 / M)) of a half-space, and two cells share each piece.
    """
    return num_modes / 2 * float(norm.pdf(norm.ppf(1 / num_modes)))
