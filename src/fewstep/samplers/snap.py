"""Commitment inside the loop, without a head: the clean estimate is read out and encoded again.

What has snapped is the latent of definite tokens, no longer a mean between several texts, and the next state is made
from it. Positions that a rule leaves out keep their estimate. B examples, K latent positions of D dimensions, L tokens,
s = L / K tokens a position (the stride), V vocabulary.
"""

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from fewstep.diagnostics import margins

MaskedDecode = Callable[[Tensor, Tensor], Tensor]
"""Latents (B, K, D) and their mask (B, K) to logits (B, L, V)."""

Encode = Callable[[Tensor, Tensor], Tensor]
"""Token ids (B, L) and their mask (B, L) to latents (B, K, D)."""

SnapSteps = Callable[[int, int], bool]
"""Whether step k = 0..N-1 of N snaps, (k, N) -> bool."""


class SnapRule(Protocol):
    """Says how decided tokens are, and from where on a position snaps."""

    @property
    def threshold(self) -> float:
        """What must be exceeded."""
        ...

    def decided(self, decode: MaskedDecode, x1_hat: Tensor, mask: Tensor, logits: Tensor) -> Tensor:
        """How decided each token is, (B, L), at estimates ``x1_hat`` (B, K, D) with ``mask`` (B, K) and their
        ``logits`` (B, L, V). A position snaps where this exceeds ``threshold`` for all tokens it stands for."""
        ...

    def passes(self, num_tokens: int) -> int:
        """Forward passes of ``decode`` that :meth:`decided` makes itself for L = ``num_tokens``."""
        ...


@dataclass(frozen=True)
class ConfidenceRule:
    """The probability of the likeliest token must exceed ``threshold``: the rule of masked models (arXiv:2202.04200).

    At a negative threshold every position snaps, from 1 on none.
    """

    threshold: float

    def decided(self, decode: MaskedDecode, x1_hat: Tensor, mask: Tensor, logits: Tensor) -> Tensor:
        """The largest probability (B, L) float64 in [0, 1]; 1 at most, whatever the rounding."""
        return logits.double().softmax(-1).amax(-1).clamp(max=1.0)

    def passes(self, num_tokens: int) -> int:
        """None beyond the readout's own."""
        return 0


@dataclass(frozen=True)
class DistanceRule:
    """The distance to the decision boundary must exceed ``threshold`` (this project's definition).

    The distance is m / |grad m| to first order, m the lead of the likeliest token over the next
    (:func:`fewstep.diagnostics.margins`), in units of the whitened latents' unit variance. It is not divided by the
    batch's rms as in the diagnostics, so that a sample does not depend on its batch. Dear: one forward and one backward
    pass of the readout for every token. At a negative threshold every position snaps, and at infinity none.
    """

    threshold: float

    def decided(self, decode: MaskedDecode, x1_hat: Tensor, mask: Tensor, logits: Tensor) -> Tensor:
        """First-order distances (B, L) float64, not negative, infinite at a zero gradient."""
        with torch.inference_mode(False):
            real = mask.clone()  # autograd keeps it, so it must not come from the caller's inference mode
        positions = torch.arange(logits.shape[1], device=x1_hat.device).expand(len(x1_hat), -1)
        return margins(lambda z: decode(z, real), x1_hat, positions).distance

    def passes(self, num_tokens: int) -> int:
        """One a token."""
        return num_tokens


def every_step(step: int, num_steps: int) -> bool:
    """Snap at every step."""
    return True


def last_steps(count: int) -> SnapSteps:
    """Snap at the last ``count`` steps. Raises ``ValueError`` for a count below 1."""
    if count < 1:
        raise ValueError(f"{count} last steps to snap at: expected a whole number of at least 1.")
    return lambda step, num_steps: step >= num_steps - count


def listed_steps(steps: Collection[int]) -> SnapSteps:
    """Snap at ``steps``, counted from 0. Raises ``ValueError`` for none, and for a negative one."""
    chosen = frozenset(steps)
    if not chosen or min(chosen) < 0:
        raise ValueError(f"steps to snap at are {sorted(chosen)}: expected at least one, counted from 0.")
    return lambda step, num_steps: step in chosen


class Snap:
    """The correction x1_hat -> likeliest tokens -> encode -> x1_hat, for :class:`fewstep.samplers.FlowSampler`.

    ``decode`` and ``encode`` are a parallel readout and the autoencoder it reads, ``stride`` the tokens a latent
    position stands for. ``steps`` says when, ``rule`` where; without a rule all positions snap. All tokens are encoded
    together, also those of positions that do not snap: the encoder sees the likeliest text as a whole. The others are
    best re-noised (:class:`fewstep.samplers.CommitmentReinjection` sees the corrected estimate). Costs two forward
    passes and those of the rule at each step at which it acts. This project's definition, after the commitment of
    arXiv:2606.30705. Raises ``ValueError`` for a stride below 1 and for a threshold that is no number.
    """

    def __init__(
        self,
        decode: MaskedDecode,
        encode: Encode,
        *,
        stride: int = 1,
        steps: SnapSteps = every_step,
        rule: SnapRule | None = None,
    ) -> None:
        if stride < 1:
            raise ValueError(f"stride is {stride}: expected a whole number of at least 1, the tokens a latent.")
        if rule is not None and math.isnan(rule.threshold):
            raise ValueError(f"snap threshold is {rule.threshold}: expected a number.")
        self.decode = decode
        self.encode = encode
        self.stride = stride
        self.steps = steps
        self.rule = rule

    @torch.no_grad()
    def __call__(self, x1_hat: Tensor, step: int, num_steps: int, mask: Tensor | None) -> Tensor:
        """See :class:`fewstep.samplers.Correction`. Where nothing snaps the result is ``x1_hat`` bit for bit.

        Raises ``ValueError`` where ``decode`` gives another number of tokens than K times the stride.
        """
        if not self.steps(step, num_steps):
            return x1_hat
        real = torch.ones_like(x1_hat[..., 0], dtype=torch.bool) if mask is None else mask.bool()
        logits = self.decode(x1_hat, real)
        tokens = x1_hat.shape[1] * self.stride
        if logits.shape[1] != tokens:
            raise ValueError(f"decode gives {logits.shape[1]} tokens: expected {tokens}, {self.stride} a position.")
        snapped = self.encode(logits.argmax(-1), real.repeat_interleave(self.stride, dim=1)).to(x1_hat.dtype)
        if self.rule is None:
            return snapped
        decided = self.rule.decided(self.decode, x1_hat, real, logits) > self.rule.threshold
        snaps = decided.unflatten(1, (x1_hat.shape[1], self.stride)).all(-1)
        return torch.where(snaps[..., None], snapped, x1_hat)

    def passes(self, num_positions: int, step: int, num_steps: int) -> int:
        """Two, and those of the rule, at a step that snaps; else none."""
        if not self.steps(step, num_steps):
            return 0
        return 2 + (0 if self.rule is None else self.rule.passes(num_positions * self.stride))
