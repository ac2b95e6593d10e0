"""A law of data whose flow is known in closed form: Gaussians of one width around M modes, or the bare modes.

With x_t = alpha x_1 + sigma x_0 and x_1 ~ sum_m N(mu_m, h^2 I) / M, a state has variance V = alpha^2 h^2 + sigma^2
around alpha times its mode. Let r be the posterior probabilities of the modes at x, m = sum r_m mu_m their mean and C
their covariance, so that dm/dx = (alpha / V) C. Then

    E[x_1 | x] = m + (alpha h^2 / V) (x - alpha m),    d E[x_1 | x] / dx = (alpha h^2 / V) I + (alpha sigma^2 / V^2) C

Conditioning of Gaussians (arXiv:2303.08797 for the path). Legend: B states, M modes, n numbers in a state; states are
(B, ...) with n numbers each, times (B,).
"""

import math

import torch
from scipy.sparse.linalg import eigsh
from torch import Tensor, nn

from fewstep.paths import MIN_DIVISOR, Path
from fewstep.schedules import upcast

BATCHED_UP_TO, DENSE_UP_TO = 64, 256
"""Largest n whose covariances (n, n) are built for all states at once, and largest that are decomposed as a whole."""
DEVIATIONS_AT_ONCE = 2**20
"""Deviations of modes (B, M, n) that are held at once."""


class Mixture(nn.Module):
    """Gaussians of standard deviation ``width`` >= 0 around ``means`` (M, n) or (M, K, D) on ``path``; a ``FlowLike``.

    Computed in float64; results have the dtype of the state. With a ``cap`` the posterior is *tempered*: the modes'
    log-likelihoods are multiplied by the largest beta <= 1 that bounds the norm of d clean / dx by
    max(cap, alpha h^2 / V) at every x, by C <= R^2 I with R the largest distance of a mode from the centroid. Samples
    stay those of the data.

    Raises ValueError for a width below 0, a cap that is not positive, and means that are no finite (M, n) or (M, K, D).
    """

    def __init__(self, path: Path, means: Tensor, width: float = 0.0, *, cap: float | None = None) -> None:
        super().__init__()
        if means.ndim < 2 or not len(means) or not bool(means.isfinite().all()):
            raise ValueError(f"means {tuple(means.shape)}: expected finite numbers (M, n) or (M, K, D).")
        if not 0 <= width < math.inf or (cap is not None and not cap > 0):
            raise ValueError(f"width is {width}, cap {cap}: expected a finite width >= 0 and a cap above 0, or None.")
        self.path, self.width, self.cap, self.shape = path, float(width), cap, means.shape[1:]
        # A parameter, so that samplers find device and shape where they look for a network's.
        self.means = nn.Parameter(means.detach().flatten(1), requires_grad=False)
        wide = self.means.double()
        self.radius = float((wide - wide.mean(0)).square().sum(1).max().sqrt())

    def sample(self, num_samples: int, generator: torch.Generator) -> Tensor:
        """Exact samples (N, n) or (N, K, D) of the data."""
        modes = self.draw_modes(num_samples, generator)
        noise = torch.randn(modes.shape, generator=generator, dtype=modes.dtype)
        return (modes + self.width * noise).unflatten(1, self.shape)

    def draw_modes(self, num_samples: int, generator: torch.Generator) -> Tensor:
        """Modes (N, n), drawn with equal probabilities."""
        equal = torch.ones(len(self.means), dtype=torch.float64)
        return self.means[torch.multinomial(equal, num_samples, replacement=True, generator=generator)]

    def denoise(self, x_t: Tensor, t: Tensor, *, mask: Tensor | None = None, self_cond: Tensor | None = None) -> Tensor:
        """The posterior mean E[x_1 | x_t] (B, ...), "clean" above. Self-conditioning is not used.

        Raises ValueError for a ``mask`` with padding: modes have none.
        """
        if mask is not None and not bool(mask.all()):
            raise ValueError("the mask has padding: the exact denoiser knows blocks without any, leave it out.")
        x = x_t.flatten(1).double()
        alpha, own, _, _, mean = self._posterior(x, t)
        return (mean + own * (x - alpha * mean)).view_as(x_t).to(upcast(x_t).dtype)

    @torch.no_grad()
    def nearest(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Distance (B,) float64 of each of ``x`` (B, ...) to its nearest mode, and the index (B,) int64 of that."""
        means = self.means.double()
        index = closeness(x, means).argmax(1)
        return (x.flatten(1).double() - means[index]).norm(dim=1), index

    def spectral_norm(self, x_t: Tensor, t: Tensor) -> Tensor:
        """Spectral norm (B,) of the Jacobian of the clean estimate in x, at the largest eigenvalue of C."""
        _, own, spread, weights, mean = self._posterior(x_t.flatten(1).double(), t)
        largest = largest_eigenvalues(weights, self.means.double(), mean)
        return (own[:, 0] + spread[:, 0] * largest).to(upcast(x_t).dtype)

    def _posterior(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """alpha, own, spread (B, 1) with the Jacobian own I + spread C; r (B, M), tempered under a cap, and m."""
        alpha, sigma = self.path.alpha_sigma(t, x)
        variance = (alpha**2 * self.width**2 + sigma**2).clamp(min=MIN_DIVISOR**2)
        own, spread = alpha * self.width**2 / variance, alpha * sigma**2 / variance**2
        means = self.means.double()
        beta = torch.ones_like(variance)
        if self.cap is not None:
            steepest = spread * self.radius**2
            beta = ((self.cap - own).clamp(min=0) / steepest.clamp(min=torch.finfo(steepest.dtype).tiny)).clamp(max=1)
        # |x|^2 is the same for all modes
        likelihood = (alpha * (x @ means.T) - alpha**2 * means.square().sum(1) / 2) * beta / variance
        weights = likelihood.softmax(-1)
        return alpha, own, beta * spread, weights, weights @ means


def closeness(x: Tensor, means: Tensor) -> Tensor:
    """x . mu - |mu|^2 / 2 (N, M), largest for the nearest mode; half the squared distance up to a term of x alone."""
    return x.flatten(1).to(means) @ means.T - means.square().sum(1) / 2


def largest_eigenvalues(weights: Tensor, means: Tensor, mean: Tensor) -> Tensor:
    """Largest eigenvalue (B,) of C = sum_m r_m (mu_m - m)(mu_m - m)', float64; of large matrices by Lanczos' method."""
    few = means.shape[1] <= BATCHED_UP_TO
    size = max(1, DEVIATIONS_AT_ONCE // means.numel()) if few else 1
    parts = zip(weights.split(size), mean.split(size), strict=True)
    return torch.cat([_largest(r, means, m) for r, m in parts])


def _largest(weights: Tensor, means: Tensor, mean: Tensor) -> Tensor:
    if len(weights) == 1:  # many modes, most of them without weight: leave out what is less than rounding together
        heavy = weights[0] > torch.finfo(weights.dtype).eps / len(means)
        weights, means = weights[:, heavy], means[heavy]
    root = (means - mean[:, None]) * weights[..., None].sqrt()
    grams = root @ root.mT if root.shape[1] < root.shape[2] else root.mT @ root  # of equal eigenvalues the smaller
    if len(grams) > 1 or grams.shape[1] <= DENSE_UP_TO:
        return torch.linalg.eigvalsh(grams)[:, -1]
    start = torch.arange(1, grams.shape[1] + 1).double().mul(1.618).sin().numpy()  # without symmetry
    return torch.from_numpy(eigsh(grams[0].numpy(), k=1, which="LA", v0=start, tol=1e-7, return_eigenvectors=False))
