"""The denoiser that thinks in tokens. B batch, K positions, D latent dimension, V vocabulary, W width."""

import torch
from torch import Tensor, nn

from fewstep.denoisers.output import DenoiserOutput
from fewstep.nn import AdaptiveTransformer
from fewstep.paths import PATHS, Path, name_of_path
from fewstep.schedules import upcast
from fewstep.shapes import check_sizes


class CategoricalDenoiser(nn.Module):
    """Posterior over tokens times the codebook: x1_hat = sum_v p(v | x_t) e_v (this project's definition).

    For latents that are a code e_v of single tokens, the position's own evidence is known in closed form:
    log N(x_t; alpha_t e_v, sigma_t^2) = (alpha/sigma^2) x_t . e_v - (alpha/sigma)^2 |e_v|^2 / 2 + const. The network
    therefore only learns what the neighbours say, log p(v | the other positions), which is added to it (Bayes' rule).
    The estimate is a posterior mean, always inside the codebook's hull; trained by cross-entropy as in CDCD
    (arXiv:2211.15089) and one-hot language flows. Predicts x_1 only. ``max_frequency`` is that of
    :class:`RegressionDenoiser`. Raises ``ValueError`` for sizes that are none.
    """

    codebook: Tensor
    log_prior: Tensor

    def __init__(
        self,
        latent_dim: int,
        num_positions: int,
        vocab_size: int,
        path: Path | str,
        *,
        width: int = 192,
        depth: int = 6,
        num_heads: int = 6,
        self_conditioning: bool = False,
        two_times: bool = False,
        local_reach: int = 2,
        max_frequency: float = 1_000.0,
    ) -> None:
        super().__init__()
        sizes = {"latent_dim": latent_dim, "num_positions": num_positions, "vocab_size": vocab_size}
        check_sizes("CategoricalDenoiser", {**sizes, "width": width, "num_heads": num_heads})
        check_sizes("CategoricalDenoiser", {"depth": depth, "local_reach": local_reach}, least=0)
        self.config = {
            **sizes,
            "path": path if isinstance(path, str) else name_of_path(path),
            "width": width,
            "depth": depth,
            "num_heads": num_heads,
            "self_conditioning": self_conditioning,
            "two_times": two_times,
            "local_reach": local_reach,
            "max_frequency": max_frequency,
        }
        self.path = PATHS[path]() if isinstance(path, str) else path
        self.self_conditioning = self_conditioning
        self.register_buffer("codebook", torch.zeros(vocab_size, latent_dim))
        self.register_buffer("log_prior", torch.zeros(vocab_size))
        self.inputs = nn.Linear(latent_dim * (2 if self_conditioning else 1), width)
        self.evidence = nn.Embedding(vocab_size, width)
        self.positions = nn.Parameter(torch.zeros(num_positions, width))
        self.body = AdaptiveTransformer(
            width,
            depth,
            num_heads,
            two_times=two_times,
            local_reach=local_reach,
            max_frequency=max_frequency,
        )
        self.outputs = nn.Linear(width, vocab_size)
        nn.init.zeros_(self.outputs.weight)
        nn.init.zeros_(self.outputs.bias)

    def set_codebook(self, codebook: Tensor, log_prior: Tensor) -> None:
        """Store the code (V, D) and the tokens' log-frequencies (V,) in nats; they are saved with the weights."""
        self.codebook.copy_(codebook)
        self.log_prior.copy_(log_prior)

    def log_likelihood(self, x_t: Tensor, t: Tensor) -> Tensor:
        """log p(x_t | token v at this position) up to a constant, (B, K, V) float32 under autocast too."""
        return self._linear_in_code(x_t, t, torch.zeros_like(self.log_prior))

    def _linear_in_code(self, x_t: Tensor, t: Tensor, offset: Tensor) -> Tensor:
        """log-likelihood + ``offset`` (V,) as one product: [r x, r alpha, 1] . [e, -|e|^2 / 2, offset]."""
        alpha, sigma = self.path.alpha_sigma(t, x_t)
        # Past this level every code is resolved; the floor keeps the logits finite at t = 1.
        precision = alpha / sigma.clamp(min=0.02).square()
        ones = torch.ones_like(upcast(x_t)[..., :1])
        left = torch.cat([precision * upcast(x_t), precision * alpha * ones, ones], dim=-1)
        right = torch.cat([self.codebook, -self.codebook.square().sum(-1, keepdim=True) / 2, offset[:, None]], dim=-1)
        # Near t = 1 the precision is in the thousands: a half-type product would be off by many nats.
        with torch.autocast(x_t.device.type, enabled=False):
            return left @ right.to(left.dtype).T

    def forward(
        self,
        x_t: Tensor,
        t: Tensor,
        s: Tensor | None = None,
        *,
        mask: Tensor | None = None,
        self_cond: Tensor | None = None,
    ) -> DenoiserOutput:
        """``x_t`` (B, K, D), times (B,), ``mask`` (B, K), ``self_cond`` (B, K, D)."""
        if x_t.shape[1] > len(self.positions):
            raise ValueError(f"{x_t.shape[1]} latent positions, but this denoiser was built for {len(self.positions)}")
        own = self._linear_in_code(x_t, t, self.log_prior)
        h = x_t
        if self.self_conditioning:
            h = torch.cat([x_t, torch.zeros_like(x_t) if self_cond is None else self_cond], dim=-1)
        h = self.inputs(h) + own.softmax(-1).to(x_t.dtype) @ self.evidence.weight
        h = self.body(h + self.positions[: x_t.shape[1]], t, s, mask)
        logits = upcast(self.outputs(h)) + own
        with torch.autocast(x_t.device.type, enabled=False):
            return DenoiserOutput(logits.softmax(-1) @ self.codebook, logits)
