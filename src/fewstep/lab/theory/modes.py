"""Where modes lie. M modes in R^n, all float64 of shape (M, n)."""

import math

import torch
from torch import Tensor

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
    return torch.stack(torch.meshgrid(*[ticks] * dimension, indexing="ij"), -1).reshape(-1, dimension)


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
    """Times at which s(t) = sigma / alpha equals ``scales`` (any shape, > 0), by bisection: s falls with t."""
    low, high = torch.zeros_like(scales), torch.ones_like(scales)
    for _ in range(60):
        middle = (low + high) / 2
        noisy = path.schedule.sigma(middle) > scales * path.schedule.alpha(middle)
        low, high = torch.where(noisy, middle, low), torch.where(noisy, high, middle)
    return (low + high) / 2
