"""Where modes lie, and the cells that a nearest-mode readout gives them. M modes in R^n (M, n) float64, N points.

The density integral of the boundary between cells is int_boundary p dH^(n-1).
"""

import math

import torch
from scipy.stats import norm
from torch import Tensor

from fewstep.lab.theory.mixtures import Mixture, closeness
from fewstep.paths import Path


def simplex(num_modes: int) -> Tensor:
    """M >= 2 unit vectors of R^(M-1) with equal distances: corners of the standard simplex in a basis of its plane."""
    # The basis: columns of a Householder reflection.
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
    """Median distance to the nearest other one from a mode of ``means`` (M, n), of at most 1024 spread evenly."""
    picked = torch.linspace(0, len(means) - 1, min(len(means), 1024)).round().long()
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


def boundary_distances(x: Tensor, means: Tensor) -> Tensor:
    """Exact distance (N,) from ``x`` (N, n) to the boundary of its cell, the nearest of the planes that bound it.

    With c the closeness of a mode, the plane to mode j is (c_i - c_j) / |mu_i - mu_j| away.
    """
    close = closeness(x, means)
    own = close.argmax(1, keepdim=True)
    apart = torch.cdist(means[own[:, 0]], means).scatter(1, own, math.inf)
    gaps = (close.gather(1, own) - close).scatter(1, own, math.inf)
    return torch.where(apart.isfinite(), gaps / apart, math.inf).amin(1)


def boundary_densities(law: Mixture, means: Tensor, num_samples: int, generator: torch.Generator) -> Tensor:
    """Numbers (N,) whose mean is the density integral of ``law``, of width h > 0, over the boundary between the cells
    of ``means`` (M, n).

    The face of modes i and j lies in a plane, with the density mean_k phi_h(distance of the law's k-th mode from it).
    Given k, a point of the plane is a draw of the law around k, moved into the plane. So a draw of pair, k and point
    counts its density where i and j are the nearest modes.
    """
    faces = torch.combinations(torch.arange(len(means)))
    first, second = faces[torch.randint(len(faces), (num_samples,), generator=generator)].unbind(1)
    apart = means[second] - means[first]
    normal, middle = apart / apart.norm(dim=1, keepdim=True), (means[first] + means[second]) / 2
    centre = law.draw_modes(num_samples, generator)
    noise = torch.randn(centre.shape, generator=generator, dtype=centre.dtype)
    offset = ((centre - middle) * normal).sum(1)
    in_plane = centre + law.width * noise
    in_plane = in_plane - ((in_plane - middle) * normal).sum(1, keepdim=True) * normal
    close = closeness(in_plane, means)
    level = close.gather(1, first[:, None])[:, 0]
    rivals = close.scatter(1, torch.stack([first, second], 1), -math.inf).amax(1)
    density = (-((offset / law.width) ** 2) / 2).exp() / (law.width * math.sqrt(2 * math.pi))
    return len(faces) * torch.where(level >= rivals, density, 0.0)


def least_boundary(num_modes: int) -> float:
    """The least density integral of standard normal noise between M equally likely cells, in any dimension.

    A cell has at least the boundary phi(Phi^-1(1 / M)) of a half-space (Borell 1975), and two cells share each piece.
    """
    return num_modes / 2 * float(norm.pdf(norm.ppf(1 / num_modes)))
