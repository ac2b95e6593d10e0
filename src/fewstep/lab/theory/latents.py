"""The exact denoiser over real latents. B examples, N latents of K positions and D dimensions, n = K D numbers.

With x_1 one of N latents z_i, equally likely, plus Gaussian noise of width h, and c = alpha^2 h^2 + sigma^2,

    w_i = softmax_i(-|x_t - alpha z_i|^2 / (2 c)),   E[x_1 | x_t, i] = z_i + (alpha h^2 / c) (x_t - alpha z_i),

    E[x_1 | x_t] = (sigma^2 / c) m + g x_t,   m = sum_i w_i z_i,   g = alpha h^2 / c,

    d E[x_1 | x_t] / d x_t = g I + (alpha sigma^2 / c^2) Cov_w(z)

(Bayes' rule for Gaussians; for h = 0 the Jacobian is alpha / sigma^2 times the posterior covariance). It is symmetric
and positive, so its spectral norm is g + (alpha sigma^2 / c^2) lambda_max(Cov_w).
"""

from collections.abc import Iterator
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from fewstep.lab.theory.covariance import CHUNK, WeightedCovariance, bounded_inverse_temperature
from fewstep.paths import MIN_DIVISOR, Path

CapRule = Literal["point", "everywhere"]
SCORES_AT_ONCE = 2**24
"""Scores (examples times latents) held at once while beta is computed: 128 MiB."""


class LatentPosterior(nn.Module):
    """The posterior mean of ``latents`` (N, K, D), smoothed by ``h`` >= 0 (in units of a latent), as a flow model.

    A :class:`fewstep.types.FlowLike`, and with ``velocity`` and ``path`` what diagnostics ask of a flow. ``path`` is
    the one of the sampler. Latents stay in their dtype; all arithmetic is float64, ``chunk_size`` latents at a time, in
    two passes (log of the sum of the weights, then the weighted mean), so that memory beside the latents grows with
    B times ``chunk_size``. Where gradients are recorded, autograd keeps B times N numbers. At t = 1 with h = 0, c is
    held at ``MIN_DIVISOR`` squared, and the estimate is the nearest latent.

    ``cap``: a bound on the spectral norm of the denoiser's Jacobian, reached by tempering: w_i^beta in place of w_i,
    normalised, with beta in [0, 1]. The Jacobian at constant beta is then
    g I + beta (alpha sigma^2 / c^2) Cov_beta. g, the share of the smoothing, cannot be tempered away: where g exceeds
    the cap, beta is 0 and the norm g. ``rule`` says where beta is taken:

    - "point": from x_t, for each example. beta = 1 wherever the exact posterior keeps the cap, else by bisection.
      Guaranteed, up to the Ritz values' accuracy: the Jacobian *at constant beta* keeps the cap at x_t. Not
      guaranteed: a Lipschitz constant. beta changes with x_t, and may jump, since beta lambda_max(Cov_beta) is not
      monotone in beta; next to a boundary between latents the estimate jumps where beta = 1 begins to do.
    - "everywhere": from t alone, beta = (cap - g) c^2 / (alpha sigma^2 R^2), at most 1, with R the largest distance of
      a latent from the mean of all. No weights give a covariance above R^2, so the denoiser is Lipschitz with the
      constant max(cap, g), at all x_t; the price is that beta is smaller than most states need.

    Raises ValueError for latents that are not (N, K, D) or not finite, a width below 0, a cap that is not above 0, an
    unknown rule, and a chunk below 1.
    """

    squared_norms: Tensor
    start: Tensor

    def __init__(
        self,
        latents: Tensor,
        h: float,
        path: Path,
        cap: float | None = None,
        *,
        rule: CapRule = "point",
        chunk_size: int = CHUNK,
        num_iterations: int = 12,
    ) -> None:
        super().__init__()
        finite = all(bool(z.isfinite().all()) for z in latents.split(max(1, chunk_size)))  # no copy of them all
        if latents.ndim != 3 or not len(latents) or not finite:
            raise ValueError(f"latents of shape {tuple(latents.shape)}: expected N >= 1 finite ones, (N, K, D).")
        if not 0 <= h < float("inf") or (cap is not None and not cap > 0):
            raise ValueError(f"h is {h}, cap {cap}: expected a finite width of at least 0, and a cap above 0 or None.")
        if rule not in get_args(CapRule) or chunk_size < 1 or num_iterations < 1:
            raise ValueError(
                f"rule {rule!r}, chunk_size {chunk_size}, num_iterations {num_iterations}: "
                f"expected one of {', '.join(get_args(CapRule))}, and numbers of at least 1."
            )
        self.h, self.path, self.cap, self.rule = float(h), path, cap, rule
        self.chunk_size, self.num_iterations = chunk_size, num_iterations
        # A parameter, so that samplers find device and shape where they look for a network's.
        self.latents = nn.Parameter(latents.detach(), requires_grad=False)
        flat = self.latents.flatten(1)
        norms = torch.empty(len(flat), dtype=torch.float64, device=flat.device)
        for z, part in zip(flat.split(chunk_size), norms.split(chunk_size), strict=True):
            part.copy_(z.double().square().sum(1))  # small tensors kept between large ones would fragment the heap
        start = torch.randn(flat.shape[1], generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        self.register_buffer("squared_norms", norms, persistent=False)
        self.register_buffer("start", start.to(latents.device), persistent=False)
        self.radius = self._radius() if cap is not None else None

    def denoise(self, x_t: Tensor, t: Tensor, *, mask: Tensor | None = None, self_cond: Tensor | None = None) -> Tensor:
        """The estimate (B, K, D) at ``x_t`` (B, K, D) and ``t`` (B,), in the dtype of ``x_t``; float64 within.

        ``self_cond`` is not used. Raises ValueError for a ``mask`` (B, K) with padding: the latents have none.
        """
        if mask is not None and not bool(mask.all()):
            raise ValueError("the mask has padding: the exact denoiser knows blocks without any, leave it out.")
        x, alpha, sigma, c = self._at(x_t, t)
        scale = self._beta(x, alpha, sigma, c)[:, None] / c
        total = torch.stack([scores.logsumexp(1) for scores, _ in self._scores(x, alpha, scale)], 1).logsumexp(1)
        mean = torch.zeros_like(x)
        for scores, z in self._scores(x, alpha, scale):
            mean = mean + (scores - total[:, None]).exp() @ z
        estimate = mean + alpha * self.h**2 / c * (x - alpha * mean)
        return estimate.view_as(x_t).to(x_t.dtype)

    def velocity_of(self, x_t: Tensor, x1_hat: Tensor, t: Tensor) -> Tensor:
        """The velocity (B, K, D) that belongs to ``x1_hat`` at (x_t, t)."""
        return self.path.velocity_from_x1(x_t, x1_hat, t)

    def velocity(
        self, x_t: Tensor, t: Tensor, *, mask: Tensor | None = None, self_cond: Tensor | None = None
    ) -> Tensor:
        """dx/dt (B, K, D) of the deterministic flow."""
        return self.velocity_of(x_t, self.denoise(x_t, t, mask=mask), t)

    @torch.no_grad()
    def inverse_temperature(self, x_t: Tensor, t: Tensor) -> Tensor:
        """beta (B,) float64 in [0, 1] at ``x_t`` (B, K, D) and ``t`` (B,); 1 without a cap."""
        return self._beta(*self._at(x_t, t))

    @torch.no_grad()
    def nearest(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Distance (B,) float64 of each of ``x`` (B, K, D) to its nearest latent, and the index (B,) int64 of that."""
        flat = x.flatten(1).double()
        ones = torch.ones(len(flat), 1, dtype=torch.float64, device=flat.device)
        best = [scores.max(1) for scores, _ in self._scores(flat, ones, ones)]
        chunk = torch.stack([b.values for b in best], 1).argmax(1)
        inside = torch.stack([b.indices for b in best], 1).gather(1, chunk[:, None])[:, 0]
        index = chunk * self.chunk_size + inside
        return (flat - self.latents.flatten(1)[index].double()).norm(dim=1), index

    def _at(self, x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """x (B, n), alpha, sigma and c (B, 1), float64."""
        x = x_t.flatten(1).double()
        alpha, sigma = self.path.alpha_sigma(t, x)
        return x, alpha, sigma, (alpha.square() * self.h**2 + sigma.square()).clamp(min=MIN_DIVISOR**2)

    def _scores(self, x: Tensor, alpha: Tensor, scale: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Chunk by chunk: scale (alpha x'z - alpha^2 |z|^2 / 2), (B, chunk), the log-weights up to a constant; z."""
        chunks = self.latents.flatten(1).split(self.chunk_size)
        for z, squared in zip(chunks, self.squared_norms.split(self.chunk_size), strict=True):
            wide = z.double()
            yield scale * (alpha * (x @ wide.T) - alpha.square() / 2 * squared), wide

    def _smoothing(self, alpha: Tensor, c: Tensor) -> Tensor:
        return (alpha * self.h**2 / c)[:, 0]

    @torch.no_grad()
    def _beta(self, x: Tensor, alpha: Tensor, sigma: Tensor, c: Tensor) -> Tensor:
        if self.cap is None or self.radius is None:
            return torch.ones(len(x), dtype=torch.float64, device=x.device)
        room = (self.cap - self._smoothing(alpha, c)).clamp(min=0)
        bound = room / (alpha * sigma.square() / c.square())[:, 0].clamp(min=torch.finfo(torch.float64).tiny)
        safe = (bound / max(self.radius**2, torch.finfo(torch.float64).tiny)).clamp(max=1)
        if self.rule == "everywhere":
            return safe
        beta = torch.where(room > 0, 1.0, 0.0).double()
        asked = ((safe < 1) & (room > 0)).nonzero()[:, 0]
        for group in self._groups(len(asked)):
            rows = asked[group]
            covariance = self._covariance(x[rows], alpha[rows], c[rows])
            beta[rows] = bounded_inverse_temperature(
                covariance, bound[rows], safe[rows], self.start, self.num_iterations
            )
        return beta

    def _groups(self, count: int) -> Iterator[slice]:
        """Slices of as many examples as :data:`SCORES_AT_ONCE` allows."""
        at_once = max(1, SCORES_AT_ONCE // len(self.latents))
        return (slice(first, first + at_once) for first in range(0, count, at_once))

    def _covariance(self, x: Tensor, alpha: Tensor, c: Tensor) -> WeightedCovariance:
        scores = torch.cat([part for part, _ in self._scores(x.detach(), alpha, 1 / c)], 1)
        return WeightedCovariance(self.latents.flatten(1), scores, self.chunk_size)

    def _radius(self) -> float:
        """The largest distance of a latent from the mean of all."""
        chunks = self.latents.flatten(1).split(self.chunk_size)
        mean = torch.stack([z.double().sum(0) for z in chunks]).sum(0) / len(self.latents)
        return max(float((z.double() - mean).norm(dim=1).max()) for z in chunks)
