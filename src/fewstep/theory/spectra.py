"""Both ends of the spectrum of a posterior covariance. B rows, M modes, n numbers."""

import torch
from torch import Tensor

from fewstep.theory.covariance import Product, largest_eigenvalue

DENSE_UP_TO = 64
"""Largest n whose matrices (n, n) are built."""
NUMBERS_AT_ONCE = 2**20
"""Deviations of modes (B, M, n) that are held at once."""
NUM_ITERATIONS = 24
"""Of Lanczos' method, above that."""


def extreme_eigenvalues(weights: Tensor, means: Tensor, mean: Tensor) -> Tensor:
    """Smallest and largest eigenvalue (B, 2) of C = sum_m r_m (mu_m - m)(mu_m - m)'.

    ``weights`` r (B, M), ``means`` mu (M, n), ``mean`` m (B, n). Exact for n <= 64. Above, Ritz values: the largest
    approached from below; the smallest as the largest minus that of (largest - C), from above.
    """
    if means.shape[1] <= DENSE_UP_TO:
        size = max(1, NUMBERS_AT_ONCE // means.numel())
        parts = zip(weights.split(size), mean.split(size), strict=True)
        covariance = torch.cat([covariances(r, means, m) for r, m in parts])
        # In double: LAPACK gives up on some matrices of tiny float32 numbers.
        return torch.linalg.eigvalsh(covariance.double())[:, [0, -1]].to(means)

    # In double: next to nothing in float32 is a new direction to Lanczos' method where only rounding is left.
    weights, mean, wide = weights.double(), mean.double(), means.double()

    def times_covariance(u: Tensor) -> Tensor:
        along = weights * (u @ wide.T - (u * mean).sum(1, keepdim=True))
        return along @ wide - along.sum(1, keepdim=True) * mean

    # A fixed direction without symmetry, and the likeliest mode's: between two modes that is the eigenvector already.
    fixed = torch.arange(1, means.shape[1] + 1).to(wide).mul(1.618).sin().expand_as(mean)
    toward = wide[weights.argmax(1)] - mean
    top = _largest(times_covariance, toward + 1e-2 * toward.norm(dim=1, keepdim=True) * fixed)
    if len(means) <= means.shape[1]:
        return torch.stack([torch.zeros_like(top), top], 1).to(means)  # M modes span M - 1 directions
    gap = _largest(lambda u: top[:, None] * u - times_covariance(u), fixed)
    return torch.stack([top - gap, top], 1).to(means)


def _largest(product: Product, start: Tensor) -> Tensor:
    return largest_eigenvalue(product, start, NUM_ITERATIONS)[0]


def covariances(weights: Tensor, means: Tensor, mean: Tensor) -> Tensor:
    """The matrices C (B, n, n) of :func:`extreme_eigenvalues`."""
    if len(weights) == 1:  # many modes, most of them without weight: leave out what is less than rounding together
        kept = weights[0] > torch.finfo(weights.dtype).eps / len(means)
        weights, means = weights[:, kept], means[kept]
    deviations = (means - mean[:, None]) * weights[..., None].sqrt()
    return deviations.mT @ deviations
