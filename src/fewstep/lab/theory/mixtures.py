"""A law of data whose flow is known in closed form: Gaussians of one width around M modes, or the bare modes.

With x_t = alpha x_1 + sigma x_0 and x_1 ~ sum_m w_m N(mu_m, h^2 I), a state has variance V = alpha^2 h^2 + sigma^2
around alpha times its mode. Let r be the posterior probabilities of the modes at x, m = sum r_m mu_m their mean and C
their covariance, so that dm/dx = (alpha / V) C. Then

    E[x_1 | x] = m + (alpha h^2 / V) (x - alpha m),    d E[x_1 | x] / dx = (alpha h^2 / V) I + (alpha sigma^2 / V^2) C

Conditioning of Gaussians (arXiv:2303.08797 for the path). Legend: B states, M modes, n numbers in a state; states are
(B, ...) with n numbers each, times (B,).
"""

import math
from typing import NamedTuple

import torch
from scipy.sparse.linalg import eigsh
from torch import Tensor, nn

from fewstep.paths import MIN_DIVISOR, Path
from fewstep.schedules import upcast

BATCHED_UP_TO, DENSE_UP_TO = 64, 256
"""Largest n whose covariances (n, n) are built for all states at once, and largest that are decomposed as a whole."""
NUMBERS_AT_ONCE = 2**24
"""Scores (B, M), or deviations of modes (B, M, n) times 16, that are held at once."""


class _Posterior(NamedTuple):
    """Of the modes at a state: ``weights`` r (B, M), their ``mean`` m (B, n), and alpha, sigma, V, beta (B, 1)."""

    alpha: Tensor
    sigma: Tensor
    variance: Tensor
    beta: Tensor
    weights: Tensor
    mean: Tensor


class Mixture(nn.Module):
    """Gaussians of standard deviation ``width`` >= 0 around ``means`` (M, n) or (M, K, D) on ``path``; a ``FlowLike``.

    ``log_weights`` (M,) need not be normalised; None gives all modes the same weight. The posterior is computed in
    float64, for as many states at a time as memory allows; results have the dtype of the state.

    With a ``cap``, a *tempered* posterior takes the place of the exact one: log-likelihoods of the modes are multiplied
    by the largest beta <= 1 that bounds the norm of d clean / dx by max(cap, alpha h^2 / V) at every x, by C <= R^2 I
    with R the largest distance of a mode from the centroid (sharp for two modes). The denoiser is then Lipschitz with
    that constant, at the price of a smaller beta than most states need. Samples stay those of the data.

    Raises ValueError for a width below 0, a cap that is not positive, and shapes that do not fit.
    """

    log_weights: Tensor

    def __init__(
        self,
        path: Path,
        means: Tensor,
        width: float = 0.0,
        log_weights: Tensor | None = None,
        *,
        cap: float | None = None,
    ) -> None:
        super().__init__()
        log_weights = means.new_zeros(len(means)) if log_weights is None else log_weights
        fits = means.ndim >= 2 and len(means) and log_weights.shape == means.shape[:1]
        if not fits or not bool(means.isfinite().all()):
            raise ValueError(
                f"means {tuple(means.shape)}, log_weights {tuple(log_weights.shape)}: expected finite "
                "numbers (M, n) or (M, K, D), and (M,)."
            )
        if not 0 <= width < math.inf or (cap is not None and not cap > 0):
            raise ValueError(f"width is {width}, cap {cap}: expected a finite width >= 0 and a cap above 0, or None.")
        self.path, self.width, self.cap, self.shape = path, float(width), cap, means.shape[1:]
        # A parameter, so that samplers find device and shape where they look for a network's.
        self.means = nn.Parameter(means.detach().flatten(1), requires_grad=False)
        self.register_buffer("log_weights", log_weights.double().log_softmax(0), persistent=False)
        wide = self.means.double()
        self.radius = float((wide - wide.mean(0)).square().sum(1).max().sqrt())
        """Largest distance of a mode from the centroid of the modes."""

    def sample(self, num_samples: int, generator: torch.Generator) -> Tensor:
        """Exact samples (N, n) or (N, K, D) of the data."""
        modes = self.means[self.draw_modes(num_samples, generator)]
        noise = torch.randn(modes.shape, generator=generator, dtype=modes.dtype)
        return (modes + self.width * noise).unflatten(1, self.shape)

    def draw_modes(self, num_samples: int, generator: torch.Generator) -> Tensor:
        """Indices (N,) of modes, drawn by their weights."""
        return torch.multinomial(self.log_weights.exp(), num_samples, replacement=True, generator=generator)

    def denoise(self, x_t: Tensor, t: Tensor, *, mask: Tensor | None = None, self_cond: Tensor | None = None) -> Tensor:
        """The posterior mean E[x_1 | x_t] (B, ...), "clean" above. Self-conditioning is not used.

        Raises ValueError for a ``mask`` with padding: modes have none.
        """
        if mask is not None and not bool(mask.all()):
            raise ValueError("the mask has padding: the exact denoiser knows blocks without any, leave it out.")
        size = max(1, NUMBERS_AT_ONCE // len(self.means))
        parts = zip(x_t.flatten(1).split(size), t.split(size), strict=True)
        return torch.cat([self._clean(x.double(), time) for x, time in parts]).view_as(x_t).to(upcast(x_t).dtype)

    @torch.no_grad()
    def nearest(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Distance (B,) float64 of each of ``x`` (B, ...) to its nearest mode, and the index (B,) int64 of that."""
        flat = x.flatten(1).double()
        means = self.means.double()
        index = (flat @ means.T - means.square().sum(1) / 2).argmax(1)
        return (flat - means[index]).norm(dim=1), index

    def spectral_norm(self, x_t: Tensor, t: Tensor) -> Tensor:
        """Spectral norm (B,) of the Jacobian of the clean estimate in x, at the largest eigenvalue of C."""
        at = self._posterior(x_t.flatten(1).double(), t)
        own, spread = at.alpha * self.width**2 / at.variance, at.beta * at.alpha * at.sigma**2 / at.variance**2
        largest = largest_eigenvalues(at.weights, self.means.double(), at.mean)
        return (own[:, 0] + spread[:, 0] * largest).to(upcast(x_t).dtype)

    def _clean(self, x: Tensor, t: Tensor) -> Tensor:
        at = self._posterior(x, t)
        return at.mean + at.alpha * self.width**2 / at.variance * (x - at.alpha * at.mean)

    def _posterior(self, x: Tensor, t: Tensor) -> _Posterior:
        """At states ``x`` (B, n) float64; tempered under a cap."""
        alpha, sigma = self.path.alpha_sigma(t, x)
        variance = (alpha**2 * self.width**2 + sigma**2).clamp(min=MIN_DIVISOR**2)
        means = self.means.double()
        beta = torch.ones_like(variance)
        if self.cap is not None:
            room = (self.cap - alpha * self.width**2 / variance).clamp(min=0)
            steepest = alpha * sigma**2 / variance**2 * self.radius**2
            beta = (room / steepest.clamp(min=torch.finfo(steepest.dtype).tiny)).clamp(max=1)
        # |x|^2 is the same for all modes
        likelihood = (alpha * (x @ means.T) - alpha**2 * means.square().sum(1) / 2) * beta / variance
        weights = (self.log_weights + likelihood).softmax(-1)
        return _Posterior(alpha, sigma, variance, beta, weights, weights @ means)


def largest_eigenvalues(weights: Tensor, means: Tensor, mean: Tensor) -> Tensor:
    """Largest eigenvalue (B,) of C = sum_m r_m (mu_m - m)(mu_m - m)', float64.

    ``weights`` r (B, M), ``means`` mu (M, n), ``mean`` m (B, n). States of many numbers are taken one by one, large
    matrices by Lanczos' method.
    """
    few = means.shape[1] <= BATCHED_UP_TO
    size = max(1, NUMBERS_AT_ONCE // 16 // means.numel()) if few else 1
    parts = zip(weights.split(size), mean.split(size), strict=True)
    return torch.cat([_largest(_gram(r, means, m)) for r, m in parts])


def _gram(weights: Tensor, means: Tensor, mean: Tensor) -> Tensor:
    """Matrices (B, k, k) with the largest eigenvalues of C: root' root, or root root' where there are fewer modes."""
    if len(weights) == 1:  # many modes, most of them without weight: leave out what is less than rounding together
        heavy = weights[0] > torch.finfo(weights.dtype).eps / len(means)
        weights, means = weights[:, heavy], means[heavy]
    root = (means - mean[:, None]) * weights[..., None].sqrt()
    return root @ root.mT if root.shape[1] < root.shape[2] else root.mT @ root


def _largest(grams: Tensor) -> Tensor:
    if len(grams) > 1 or grams.shape[1] <= DENSE_UP_TO:
        return torch.linalg.eigvalsh(grams)[:, -1]
    start = torch.arange(1, grams.shape[1] + 1).double().mul(1.618).sin().numpy()  # without symmetry
    return torch.from_numpy(eigsh(grams[0].numpy(), k=1, which="LA", v0=start, tol=1e-7, return_eigenvectors=False))
