"""The networks that estimate clean latents: by regression, or as a posterior over tokens.

B batch, K positions, D latent dimension, V vocabulary, W width.
"""

from typing import Any

import torch
from torch import Tensor, nn

from fewstep.denoisers.flow_model import DenoiserOutput
from fewstep.errors import UserError
from fewstep.nn import AdaptiveTransformer
from fewstep.paths import PATHS, PathName
from fewstep.schedules import upcast
from fewstep.shapes import check_sizes

MIN_SIGMA = 0.02
"""Below this noise level every code is resolved; the floor keeps the logits finite at t = 1."""


class RegressionDenoiser(nn.Module):
    """Diffusion transformer over latents (B, K, D), after arXiv:2212.09748; its output starts at zero.

    ``num_positions`` fixes the longest K, ``latent_dim`` is D. With ``self_conditioning`` it also reads its previous
    estimate of x_1 (arXiv:2208.04202). ``max_frequency``, in radians per unit of time, bounds how fast the output may
    change with time: low for objectives that take a derivative in time (:class:`~fewstep.nn.AdaptiveTransformer`).
    With ``reads_known`` an embedding, zero at first, marks positions that are known (:class:`.ConditionalFlow`).
    """

    def __init__(
        self,
        latent_dim: int,
        num_positions: int,
        *,
        width: int = 192,
        depth: int = 6,
        num_heads: int = 6,
        self_conditioning: bool = False,
        two_times: bool = False,
        local_reach: int = 2,
        max_frequency: float = 1_000.0,
        reads_known: bool = False,
    ) -> None:
        super().__init__()
        sizes = {"latent_dim": latent_dim, "num_positions": num_positions, "width": width, "num_heads": num_heads}
        check_sizes(type(self).__name__, sizes)
        check_sizes(type(self).__name__, {"depth": depth, "local_reach": local_reach}, least=0)
        options = {"two_times": two_times, "local_reach": local_reach, "max_frequency": max_frequency}
        options["reads_known"] = reads_known
        self.config: dict[str, Any] = {**sizes, "depth": depth, "self_conditioning": self_conditioning, **options}
        self.self_conditioning = self_conditioning
        self.inputs = nn.Linear(latent_dim * (2 if self_conditioning else 1), width)
        self.positions = nn.Parameter(torch.zeros(num_positions, width))
        self.body = AdaptiveTransformer(
            width, depth, num_heads, two_times=two_times, local_reach=local_reach, max_frequency=max_frequency
        )
        self.outputs = zero_linear(width, latent_dim)
        self.known = nn.Parameter(torch.zeros(width)) if reads_known else None

    def embed(self, x_t: Tensor, self_cond: Tensor | None, known: Tensor | None) -> Tensor:
        """``x_t`` and ``self_cond`` (B, K, D), ``known`` (B, K) bool, to (B, K, W)."""
        if x_t.shape[1] > len(self.positions):
            raise ValueError(f"{x_t.shape[1]} latent positions, but this denoiser was built for {len(self.positions)}")
        h = x_t
        if self.self_conditioning:
            h = torch.cat([x_t, torch.zeros_like(x_t) if self_cond is None else self_cond], dim=-1)
        h = self.inputs(h) + self.positions[: x_t.shape[1]]
        if known is None:
            return h
        assert self.known is not None, "this denoiser was built without reads_known"
        return h + known[..., None] * self.known

    def forward(
        self,
        x_t: Tensor,
        t: Tensor,
        s: Tensor | None = None,
        *,
        mask: Tensor | None = None,
        self_cond: Tensor | None = None,
        known: Tensor | None = None,
    ) -> DenoiserOutput:
        """``x_t`` (B, K, D), times (B,), ``mask`` (B, K), ``self_cond`` (B, K, D), ``known`` (B, K) bool."""
        return DenoiserOutput(upcast(self.outputs(self.body(self.embed(x_t, self_cond, known), t, s, mask))))


class CategoricalDenoiser(RegressionDenoiser):
    """Posterior over tokens times their codes: x1_hat = sum_v p(v | x_t) e_v, as in CDCD (arXiv:2211.15089).

    For latents that are a code e_v of single tokens, the position's own evidence is known in closed form:
    log N(x_t; alpha_t e_v, sigma_t^2) = (alpha/sigma^2) x_t . e_v - (alpha/sigma)^2 |e_v|^2 / 2 + const. The network
    learns log p(v | the other positions), which is added to it (Bayes' rule). Predicts x_1 only.
    """

    codebook: Tensor
    log_prior: Tensor

    def __init__(
        self,
        latent_dim: int,
        num_positions: int,
        vocab_size: int,
        path: PathName = "linear",
        *,
        width: int = 192,
        depth: int = 6,
        num_heads: int = 6,
        self_conditioning: bool = False,
        two_times: bool = False,
        local_reach: int = 2,
        max_frequency: float = 1_000.0,
        reads_known: bool = False,
    ) -> None:
        check_sizes("CategoricalDenoiser", {"vocab_size": vocab_size})
        super().__init__(
            latent_dim,
            num_positions,
            width=width,
            depth=depth,
            num_heads=num_heads,
            self_conditioning=self_conditioning,
            two_times=two_times,
            local_reach=local_reach,
            max_frequency=max_frequency,
            reads_known=reads_known,
        )
        self.config |= {"vocab_size": vocab_size, "path": path}
        self.path = PATHS[path]()
        self.evidence = nn.Embedding(vocab_size, width)
        self.outputs = zero_linear(width, vocab_size)
        self.register_buffer("codebook", torch.zeros(vocab_size, latent_dim))  # last: zeros touch their memory
        self.register_buffer("log_prior", torch.zeros(vocab_size))

    def set_codebook(self, codebook: Tensor, log_prior: Tensor) -> None:
        """See :class:`~fewstep.denoisers.ReadsCodebook`; both are saved with the weights."""
        if codebook.shape != self.codebook.shape:
            raise UserError(
                f"the denoiser is built for {len(self.codebook)} tokens of {self.codebook.shape[1]} dimensions, the "
                f"codebook has {len(codebook)} of {codebook.shape[1]}: give vocab_size={len(codebook)}"
            )
        self.codebook.copy_(codebook)
        self.log_prior.copy_(log_prior)

    def own_logits(self, x_t: Tensor, t: Tensor) -> Tensor:
        """log p(x_t | token v at this position) + log p(v) up to a constant, (B, K, V) float32 under autocast too.

        One product, [r x, r alpha, 1] . [e, -|e|^2 / 2, log p(v)] with r = alpha / sigma^2. ``t`` (B,) or (B, K).
        """
        alpha, sigma = self.path.alpha_sigma(t, x_t)
        precision = alpha / sigma.clamp(min=MIN_SIGMA).square()
        ones = torch.ones_like(upcast(x_t)[..., :1])
        left = torch.cat([precision * upcast(x_t), precision * alpha * ones, ones], dim=-1)
        squares = -self.codebook.square().sum(-1, keepdim=True) / 2
        right = torch.cat([self.codebook, squares, self.log_prior[:, None]], dim=-1)
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
        known: Tensor | None = None,
    ) -> DenoiserOutput:
        own = self.own_logits(x_t, t if known is None else torch.where(known, 1.0, t[:, None]))
        h = self.embed(x_t, self_cond, known) + own.softmax(-1).to(x_t.dtype) @ self.evidence.weight
        logits = upcast(self.outputs(self.body(h, t, s, mask))) + own
        with torch.autocast(x_t.device.type, enabled=False):
            return DenoiserOutput(logits.softmax(-1) @ self.codebook, logits)


def zero_linear(inputs: int, outputs: int) -> nn.Linear:
    """A linear map that starts at zero."""
    layer = nn.Linear(inputs, outputs)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer
