"""A law of data whose flow is known in closed form: Gaussians of one width around M modes, or the bare modes.

With x_t = alpha x_1 + sigma x_0 and x_1 ~ sum_m w_m N(mu_m, h^2 I), a state has variance V = alpha^2 h^2 + sigma^2
around alpha times its mode. Let r be the posterior probabilities of the modes at x, m = sum r_m mu_m their mean and C
their covariance. Everything else is linear in x and m, and every Jacobian is a I + b C, since dm/dx = (alpha / V) C:

===================  ======================================  ====================================================
clean E[x_1 | x]     (alpha h^2 x + sigma^2 m) / V           (alpha h^2 / V) I + (alpha sigma^2 / V^2) C
noise E[x_0 | x]     sigma (x - alpha m) / V                 (sigma / V) I - (sigma alpha^2 / V^2) C
velocity             alpha' clean + sigma' noise             the same combination of the two above
===================  ======================================  ====================================================

Conditioning of Gaussians (arXiv:2303.08797 for the path). Legend: B states, M modes,
n numbers in a state; states are (B, ...) with n numbers each, times (B,).
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from fewstep.lab.theory.covariance import extreme_eigenvalues
from fewstep.paths import MIN_DIVISOR, Path
from fewstep.schedules import upcast

Field = Literal["clean", "velocity"]


@dataclass(frozen=True)
class Posterior:
    """Posterior of the mode at a state: ``weights`` r (B, M), their ``mean`` m (B, n), and the scales (B, 1).

    ``beta`` <= 1 multiplies the log-likelihood of the modes under a cap; dm/dx = (beta alpha / V) C.
    """

    alpha: Tensor
    sigma: Tensor
    variance: Tensor
    beta: Tensor
    weights: Tensor
    mean: Tensor


class Mixture:
    """Gaussians of standard deviation ``width`` >= 0 around ``means`` (M, n) on ``path``; a ``FlowLike``.

    ``log_weights`` (M,) need not be normalised; None gives all modes the same weight. Results have the dtype of the
    state, at least float32.

    With a ``cap``, a *tempered* posterior takes the place of the exact one: log-likelihoods of the modes are multiplied
    by the largest beta <= 1 that bounds the norm of d clean / dx by max(cap, alpha h^2 / V) at every x, by C <= R^2 I
    with R the largest distance of a mode from the centroid (sharp for two modes).
    :class:`fewstep.lab.theory.LatentPosterior` has this as the rule "everywhere". Samples stay those of the data.

    Raises ValueError for a width below 0, a cap that is not positive, and shapes that do not fit.
    """

    def __init__(
        self,
        path: Path,
        means: Tensor,
        width: float = 0.0,
        log_weights: Tensor | None = None,
        *,
        cap: float | None = None,
    ) -> None:
        log_weights = means.new_zeros(len(means)) if log_weights is None else log_weights
        if means.ndim != 2 or not len(means) or log_weights.shape != means.shape[:1]:
            raise ValueError(
                f"means {tuple(means.shape)}, log_weights {tuple(log_weights.shape)}: expected (M, n) and (M,), M >= 1."
            )
        if not 0 <= width < math.inf or (cap is not None and not cap > 0):
            raise ValueError(f"width is {width}, cap {cap}: expected a finite width >= 0 and a cap above 0, or None.")
        self.path, self.means, self.width, self.cap = path, means, float(width), cap
        self.log_weights = log_weights.log_softmax(0)
        self.radius = float((means - means.mean(0)).square().sum(1).max().sqrt())
        """Largest distance of a mode from the centroid of the modes."""

    def sample(self, num_samples: int, generator: torch.Generator) -> Tensor:
        """Exact samples (N, n) of the data."""
        modes = self.means[self.draw_modes(num_samples, generator)]
        noise = torch.randn(modes.shape, generator=generator, dtype=modes.dtype)
        return modes + self.width * noise

    def draw_modes(self, num_samples: int, generator: torch.Generator) -> Tensor:
        """Indices (N,) of modes, drawn by their weights."""
        return torch.multinomial(self.log_weights.exp(), num_samples, replacement=True, generator=generator)

    def posterior(self, x: Tensor, t: Tensor) -> Posterior:
        """Of the modes, at states ``x`` (B, ...) and ``t`` (B,); tempered under a cap."""
        alpha, sigma, variance = self._scales(x, t)
        means = self.means.to(alpha)
        beta = torch.ones_like(variance)
        if self.cap is not None:
            room = (self.cap - alpha * self.width**2 / variance).clamp(min=0)
            steepest = alpha * sigma**2 / variance**2 * self.radius**2
            beta = (room / steepest.clamp(min=torch.finfo(steepest.dtype).tiny)).clamp(max=1)
        overlap = upcast(x).flatten(1) @ means.T  # |x|^2 is the same for all modes
        likelihood = (alpha * overlap - alpha**2 * means.square().sum(1) / 2) * beta / variance
        weights = (self.log_weights.to(alpha) + likelihood).softmax(-1)
        return Posterior(alpha, sigma, variance, beta, weights, weights @ means)

    def denoise(self, x_t: Tensor, t: Tensor, *, mask: Tensor | None = None, self_cond: Tensor | None = None) -> Tensor:
        """The posterior mean E[x_1 | x_t] (B, ...), "clean" above. Mask and self-conditioning are not used."""
        modes = self.posterior(x_t, t)
        flat = (modes.alpha * self.width**2 * upcast(x_t).flatten(1) + modes.sigma**2 * modes.mean) / modes.variance
        return flat.reshape(x_t.shape)

    def velocity_of(self, x_t: Tensor, x1_hat: Tensor, t: Tensor) -> Tensor:
        """The velocity (B, ...) of ``x1_hat`` at (x_t, t)."""
        return self.path.velocity_from_x1(x_t, x1_hat, t)

    def velocity(self, x_t: Tensor, t: Tensor) -> Tensor:
        """The velocity (B, ...) of the posterior mean. Regular up to t = 1 for a width above 0."""
        modes = self.posterior(x_t, t)
        noise = modes.sigma * (upcast(x_t).flatten(1) - modes.alpha * modes.mean) / modes.variance
        return self.path.velocity(self.denoise(x_t, t), noise.reshape(x_t.shape), t)

    def spectral_norm(self, x_t: Tensor, t: Tensor, of: Field = "velocity") -> Tensor:
        """Spectral norm (B,) of the Jacobian of a field in x: its eigenvalues are a + b lambda, lambda those of C."""
        modes = self.posterior(x_t, t)
        identity, spread = self._coefficients(modes, t, of)
        extremes = extreme_eigenvalues(modes.weights, self.means.to(modes.alpha), modes.mean)
        return (identity + spread * extremes).abs().amax(1)

    def _scales(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """alpha, sigma and V, each (B, 1), in the dtype of ``x``, at least float32."""
        alpha, sigma = self.path.alpha_sigma(t, x.flatten(1) if x.ndim > 1 else x[:, None])
        return alpha, sigma, (alpha**2 * self.width**2 + sigma**2).clamp(min=MIN_DIVISOR**2)

    def _coefficients(self, modes: Posterior, t: Tensor, of: Field) -> tuple[Tensor, Tensor]:
        """a and b (B, 1) of a field's Jacobian a I + b C."""
        alpha, sigma, variance = modes.alpha, modes.sigma, modes.variance
        d_mean = modes.beta * alpha / variance
        clean, clean_spread = alpha * self.width**2 / variance, sigma**2 / variance * d_mean
        if of == "clean":
            return clean, clean_spread
        noise, noise_spread = sigma / variance, -sigma * alpha / variance * d_mean
        d_alpha, d_sigma = self.path.d_alpha_sigma(t, alpha)
        return d_alpha * clean + d_sigma * noise, d_alpha * clean_spread + d_sigma * noise_spread
