"""The cells of a nearest-mode readout, and their boundary. M modes in R^n, N points.

A mode's cell is where the readout takes it: the points that are nearer to it than to any other mode. The density
integral of the boundary between cells, int_boundary p dH^(n-1), is what the tube mass grows by, on each side, and what
a map's mean stiffness cannot fall below (arXiv:2606.30705, Theorem 17 as we read it).
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from fewstep.lab.theory.mixtures import Mixture
from fewstep.metrics.intervals import NORMAL_QUANTILE, Interval
from fewstep.shapes import Generators
from fewstep.types import FlowLike, SamplerState

QUADRATURE_POINTS = 4001


class Sampler(Protocol):
    """Noise to latents: what this room, below the samplers, needs of :class:`fewstep.samplers.FlowSampler`."""

    def iterate(
        self, model: FlowLike, x_0: Tensor, *, num_steps: int, mask: Tensor | None = None, generator: Generators
    ) -> Iterator[SamplerState]:
        """Yield the N+1 states from x_0 (B, K, D) on."""
        ...


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


@dataclass(frozen=True)
class BoundaryIntegral:
    """int_boundary p dH^(n-1), 1 / length, with the 95 % interval of its Monte Carlo estimate."""

    value: float
    interval: Interval


def boundary_integral(law: Mixture, means: Tensor, num_samples: int, generator: torch.Generator) -> BoundaryIntegral:
    """Density of ``law``'s data, of width h > 0, integrated over the boundary between the cells of ``means`` (M, n).

    The face of modes i and j lies in a plane. There the law has the one-dimensional density sum_k w_k phi_h(distance
    of its k-th mode from the plane), and given a point in the plane and k, the point is Gaussian within it: a draw of
    the law around k, moved into the plane. So a draw of pair, k and point counts its density where i and j are the
    nearest modes. Normal interval. Raises ValueError for a law of width 0.
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
    return BoundaryIntegral(value, Interval(value - reach, value + reach))


def simplex_boundary(num_modes: int) -> float:
    """Boundary integral of standard normal noise between the cells of M equally distant modes around 0.

    The noise of such a cell in M coordinates is where one coordinate leads, so it is
    M (M - 1) / sqrt(2) int phi(u)^2 Phi(u)^(M - 2) du, close to sqrt(ln M); by the trapezoidal rule.
    """
    u = torch.linspace(-10, 10, QUADRATURE_POINTS, dtype=torch.float64)
    log_terms = -u.square() - math.log(2 * math.pi) + (num_modes - 2) * torch.special.log_ndtr(u)
    return num_modes * (num_modes - 1) / math.sqrt(2) * float(torch.trapezoid(log_terms.exp(), u))


def least_boundary(num_modes: int) -> float:
    """No partition of standard normal noise, in any dimension, into M equally likely cells has less boundary.

    Gaussian isoperimetry (Borell 1975, Sudakov and Tsirelson 1978): a cell of mass 1 / M has at least the boundary
    phi(Phi^-1(1 / M)) of a half-space, and two cells share each piece.
    """
    edge = torch.special.ndtri(torch.tensor(1 / num_modes, dtype=torch.float64))
    return num_modes / 2 * float((-edge.square() / 2).exp()) / math.sqrt(2 * math.pi)


@torch.no_grad()
def final_states(
    sampler: Sampler, model: FlowLike, like: Tensor, num_steps: int, num_samples: int, generator: torch.Generator
) -> Tensor:
    """Where ``num_samples`` samples end, (N, n) for modes ``like`` (M, n)."""
    x = torch.randn(num_samples, 1, like.shape[1], generator=generator, dtype=like.dtype)
    for state in sampler.iterate(model, x, num_steps=num_steps, generator=generator):
        x = state.x_t
    return x[:, 0]
