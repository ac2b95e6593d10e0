"""Frozen results and the protocols that the rooms meet through.

Legend: B batch, L tokens, K latent positions, D latent dimension, V vocabulary, N steps.
"""

from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

from fewstep.shapes import Generators

Blocks = Literal["packed", "documents"]
"""How text is cut into blocks: joined and cut, or one document each, up to its end-of-text, the first that counts, and
filled with more."""


@dataclass(frozen=True)
class Latents:
    """``z`` (B, K, D), unit variance per dimension; ``mask`` (B, K) bool, true where it stands for real tokens."""

    z: Tensor
    mask: Tensor


@dataclass(frozen=True)
class TokenBatch:
    """Token ids (B, L) int64 and mask (B, L) bool, true at real tokens."""

    ids: Tensor
    mask: Tensor


@dataclass(frozen=True)
class LossOutput:
    """``loss`` scalar to minimise, ``per_example`` (B,) detached, ``terms`` named detached scalars to log."""

    loss: Tensor
    per_example: Tensor
    terms: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class TokenSample:
    """``ids`` (B, L) int64 and ``log_probs`` (B, L) nats, the log-probability that each token was drawn with.

    ``mask`` (B, L) bool is false at the padding behind a text that ended early; None means that all tokens count.
    """

    ids: Tensor
    log_probs: Tensor
    mask: Tensor | None = None

    @property
    def written(self) -> Tensor:
        """The mask (B, L), all true where it is None."""
        return torch.ones_like(self.ids, dtype=torch.bool) if self.mask is None else self.mask

    def cpu(self) -> "TokenSample":
        """The same on the CPU."""
        return TokenSample(self.ids.cpu(), self.log_probs.cpu(), None if self.mask is None else self.mask.cpu())


@dataclass(frozen=True)
class KnownTokens:
    """Tokens ``ids`` (B, L) int64 that stay where ``mask`` (B, L) bool is true: prompts, what stands around gaps.

    A text does not end before its last known token.
    """

    ids: Tensor
    mask: Tensor


@dataclass(frozen=True)
class Ending:
    """Stop at the first ``end_id``; what follows it is ``pad_id``. Both are token ids, and may be equal."""

    end_id: int
    pad_id: int


@dataclass(frozen=True)
class SamplerState:
    """``x_t`` (B, K, D) at ``step`` 0..N and ``time`` in [0, 1], ``x1_hat`` (B, K, D) or None before the first
    evaluation, ``nfe`` network evaluations spent so far.
    """

    step: int
    time: float
    x_t: Tensor
    x1_hat: Tensor | None
    nfe: int


@dataclass(frozen=True)
class Trajectory:
    """``times`` (N+1,), ``states`` N+1 tensors (B, K, D), ``predictions`` N tensors (B, K, D) of x1_hat, ``nfe``."""

    times: Tensor
    states: tuple[Tensor, ...]
    predictions: tuple[Tensor, ...]
    nfe: int

    @property
    def x_1(self) -> Tensor:
        """The last state (B, K, D)."""
        return self.states[-1]


class FlowLike(Protocol):
    """What a sampler needs of a model, whatever its network predicts. ``t`` is (B,) float32.

    A flow map also has ``two_times``, true, and takes the end ``s`` (B,) of a jump: ``denoise(x_t, t, s=s, ...)``.
    """

    def denoise(self, x_t: Tensor, t: Tensor, *, mask: Tensor | None = None, self_cond: Tensor | None = None) -> Tensor:
        """The clean estimate x1_hat (B, K, D)."""
        ...


@runtime_checkable
class LatentEncoder(Protocol):
    """Text to latents: the part ``autoencoder`` of a saved model, any ``nn.Module`` with these four members.

    ``config`` holds the constructor's arguments, from which a saved model builds it again; ``latent_dim`` is D.
    """

    config: dict[str, Any]
    latent_dim: int

    def num_latents(self, num_tokens: int, /) -> int:
        """K for blocks of L tokens. Raises ``UserError`` for an L that the encoder cannot take."""
        ...

    def encode(self, ids: Tensor, mask: Tensor, /) -> Latents:
        """Latents ``z`` (B, K, D) and their mask (B, K), for token ids (B, L) and their mask (B, L)."""
        ...


@runtime_checkable
class Readout(Protocol):
    """Latents to tokens: the part ``readout`` of a saved model, an ``nn.Module``.

    ``config`` holds the constructor's arguments, from which a saved model builds it again. A subclass of
    :class:`fewstep.readouts.ParallelReadout` only has to define ``forward(z, mask) -> logits``.
    """

    config: dict[str, Any]

    def logits(self, z: Tensor, mask: Tensor, /) -> Tensor:
        """Logits (B, L, V) of ``z`` (B, K, D) with ``mask`` (B, K)."""
        ...

    def loss(self, z: Tensor, ids: Tensor, mask: Tensor, /) -> Tensor:
        """Mean nats per real token (B,) of ``ids`` (B, L) with ``mask`` (B, L), given ``z`` (B, K, D)."""
        ...

    def generate(
        self,
        z: Tensor,
        mask: Tensor,
        /,
        *,
        temperature: float,
        top_p: float,
        top_k: int | None,
        ending: Ending | None,
        known: KnownTokens | None = None,
        generator: Generators,
    ) -> TokenSample:
        """Draw tokens (B, L) for ``z`` (B, K, D) with ``mask`` (B, K); temperature 0 takes the likeliest.

        ``known`` is passed where some are given; their log-probability is 0.
        """
        ...
