"""Extreme eigenvalues of posterior covariances, and the tempering that keeps the largest under a bound.

Legend: B examples, N points or M modes, n numbers of one point. After arXiv:2606.30705.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

CHUNK = 4096
"""Points that are widened to float64 at once."""
NUM_HALVINGS = 12
"""Halvings of the interval of log beta: its ends are then 1/4096 of where they began."""
DENSE_UP_TO = 64
"""Largest n whose matrices (n, n) are built."""
NUMBERS_AT_ONCE = 2**20
"""Deviations of modes (B, M, n) that are held at once."""
NUM_ITERATIONS = 24
"""Of Lanczos' method, above that."""
Product = Callable[[Tensor], Tensor]


class WeightedCovariance:
    """The covariance of ``points`` (N, n) under the weights softmax(beta ``scores``), ``scores`` (B, N) float64.

    The matrix (n, n) is never built, only its products with vectors, each two passes over the points in chunks.
    ``scores`` are held, so a caller with many points should give few examples at once.
    """

    def __init__(self, points: Tensor, scores: Tensor, chunk_size: int = CHUNK) -> None:
        self.points = points
        self.scores = scores
        self.chunk_size = chunk_size

    def rows(self, chosen: Tensor) -> "WeightedCovariance":
        """The same of the examples ``chosen``, (B,) bool or indices."""
        return WeightedCovariance(self.points, self.scores[chosen], self.chunk_size)

    def product(self, beta: Tensor) -> Product:
        """The map v (B, n) -> Cov v (B, n) at the inverse temperatures ``beta`` (B,)."""
        weights = (beta[:, None] * self.scores).softmax(-1)
        mean = sum((w @ z for w, z in self._chunks(weights)), torch.zeros((), dtype=torch.float64))

        def covariance_times(v: Tensor) -> Tensor:
            # sum_i w_i (z_i - mean)'v z_i: centred before it is weighted, so nothing cancels where one point has all.
            along = (mean * v).sum(-1, keepdim=True)
            parts = ((w * (v @ z.T - along)) @ z for w, z in self._chunks(weights))
            return sum(parts, torch.zeros((), dtype=torch.float64))

        return covariance_times

    def _chunks(self, weights: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        parts = self.points.split(self.chunk_size)
        for w, z in zip(weights.split(self.chunk_size, dim=1), parts, strict=True):
            yield w, z.double()


def largest_eigenvalue(product: Product, start: Tensor, num_iterations: int) -> tuple[Tensor, Tensor]:
    """Largest eigenvalue (B,) and a unit vector (B, n) for it, of symmetric positive matrices known by ``product``.

    Lanczos with full reorthogonalisation from ``start`` (B, n), ``num_iterations`` products. The value is a Ritz value:
    it approaches the eigenvalue from below and, but for rounding, never exceeds it. A Krylov space that ends early
    (fewer points than iterations) is exact. Raises ValueError for fewer than 1 iteration.
    """
    if num_iterations < 1:
        raise ValueError(f"num_iterations is {num_iterations}: expected at least 1.")
    q, basis, images = _unit(start, 0.0), [], []
    for _ in range(num_iterations):
        image = product(q)
        basis.append(q)
        images.append(image)
        span = torch.stack(basis, 1)
        residual = image
        for _ in range(2):  # once leaves the rounding of the first
            residual = residual - torch.einsum("bkn,bk->bn", span, torch.einsum("bkn,bn->bk", span, residual))
        q = _unit(residual, 1e-12 * float(image.norm(dim=-1).max()))
    span, mapped = torch.stack(basis, 1), torch.stack(images, 1)
    small = span @ mapped.transpose(1, 2)
    values, vectors = torch.linalg.eigh((small + small.transpose(1, 2)) / 2)
    return values[:, -1].clamp(min=0), torch.einsum("bkn,bk->bn", span, vectors[:, :, -1])


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
    top = largest_eigenvalue(
        times_covariance, toward + 1e-2 * toward.norm(dim=1, keepdim=True) * fixed, NUM_ITERATIONS
    )[0]
    if len(means) <= means.shape[1]:
        return torch.stack([torch.zeros_like(top), top], 1).to(means)  # M modes span M - 1 directions
    gap = largest_eigenvalue(lambda u: top[:, None] * u - times_covariance(u), fixed, NUM_ITERATIONS)[0]
    return torch.stack([top - gap, top], 1).to(means)


def covariances(weights: Tensor, means: Tensor, mean: Tensor) -> Tensor:
    """The matrices C (B, n, n) of :func:`extreme_eigenvalues`."""
    if len(weights) == 1:  # many modes, most of them without weight: leave out what is less than rounding together
        kept = weights[0] > torch.finfo(weights.dtype).eps / len(means)
        weights, means = weights[:, kept], means[kept]
    deviations = (means - mean[:, None]) * weights[..., None].sqrt()
    return deviations.mT @ deviations


def bounded_inverse_temperature(
    covariance: WeightedCovariance, bound: Tensor, safe: Tensor, start: Tensor, num_iterations: int
) -> Tensor:
    """beta (B,) in [``safe``, 1] with beta lambda_max(Cov_beta) <= ``bound`` (B,), by bisection of log beta.

    1 where 1 will do. Else an end of the set of betas that will do: beta does, and one less than 1/1000 above it (for
    ``safe`` > 1e-2) does not. beta lambda_max(Cov_beta) is not monotone in beta (where one point lies close, the
    covariance of a large beta vanishes), so this need not be the only such end. ``safe`` (B,) > 0 must be known to do.
    Eigenvalues are Ritz values from ``start`` (n,), warm-started from one beta to the next.
    """
    beta = torch.ones_like(bound)
    vector = start.expand(len(bound), -1)

    def held(value: Tensor, examples: WeightedCovariance, v: Tensor) -> tuple[Tensor, Tensor]:
        top, v = largest_eigenvalue(examples.product(value), v, num_iterations)
        return value * top, v

    value, vector = held(beta, covariance, vector)
    stiff = value > bound
    if not bool(stiff.any()):
        return beta
    hard, limit, vector = covariance.rows(stiff), bound[stiff], vector[stiff]
    low, high = safe[stiff].log(), torch.zeros_like(limit)
    for _ in range(NUM_HALVINGS):
        middle = (low + high) / 2
        value, vector = held(middle.exp(), hard, vector)
        fits = value <= limit
        low, high = torch.where(fits, middle, low), torch.where(fits, high, middle)
    return beta.masked_scatter(stiff, low.exp())


def _unit(v: Tensor, floor: float) -> Tensor:
    """Rows of unit length; a row not longer than ``floor`` becomes zero, which ends its Krylov space."""
    length = v.norm(dim=-1, keepdim=True)
    return torch.where(length > floor, v / length.clamp(min=torch.finfo(v.dtype).tiny), 0.0)
