"""Snap: the clean estimate inside the loop is replaced by the latents of its likeliest tokens.

A snapped position holds the latent of definite tokens, no longer a mean between several texts. B examples, K latent
positions of D dimensions, L tokens, V vocabulary.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Masked = Callable[[Tensor, Tensor], Tensor]
"""A function of a tensor (B, N, ...) and its mask (B, N)."""


@dataclass(frozen=True)
class SnapRule:
    """When and where to snap: in the ``last`` steps (None: every step), where the tokens' confidence exceeds a bound.

    The confidence of a token is the probability of the likeliest (the rule of masked models, arXiv:2202.04200). Without
    ``confidence`` every position snaps.
    """

    last: int | None = None
    confidence: float | None = None

    def acts(self, step: int, num_steps: int) -> bool:
        """Whether step 0..N-1 of N snaps."""
        return self.last is None or step >= num_steps - self.last


def parse_snap(text: str) -> SnapRule:
    """The rule that ``text`` names: "every" (all positions at all steps), "last:N" (all positions at the last N steps)
    or "confidence:P" (positions whose tokens all have a probability above P). Raises ValueError for anything else."""
    name, _, number = text.strip().partition(":")
    try:
        if text.strip() == "every":
            return SnapRule()
        if name == "last" and int(number) >= 1:
            return SnapRule(last=int(number))
        if name == "confidence" and not math.isnan(float(number)):
            return SnapRule(confidence=float(number))
    except ValueError:
        pass
    raise ValueError(f"snap is {text!r}: expected every, last:N with N >= 1, or confidence:P as in confidence:0.9")


class Snap:
    """The correction x1_hat -> likeliest tokens -> encode -> x1_hat, for :class:`fewstep.samplers.FlowSampler`.

    ``decode`` (latents to logits) and ``encode`` (ids to latents) are a parallel readout and the autoencoder it reads,
    ``rule`` a :class:`SnapRule` or its text. A position snaps when all its tokens exceed the bound; all tokens are
    encoded together, so the encoder sees the likeliest text as a whole. Costs two forward passes at each step that
    snaps. After the commitment of arXiv:2606.30705.
    """

    def __init__(self, decode: Masked, encode: Masked, rule: str | SnapRule = "every") -> None:
        self.decode = decode
        self.encode = encode
        self.rule = parse_snap(rule) if isinstance(rule, str) else rule

    @torch.no_grad()
    def __call__(self, x1_hat: Tensor, step: int, num_steps: int, mask: Tensor) -> tuple[Tensor, int]:
        """The estimate (B, K, D) and the forward passes; where nothing snaps, ``x1_hat`` bit for bit."""
        if not self.rule.acts(step, num_steps):
            return x1_hat, 0
        logits = self.decode(x1_hat, mask)
        stride, rest = divmod(logits.shape[1], x1_hat.shape[1])
        if rest:
            raise ValueError(f"decode gives {logits.shape[1]} tokens: expected a multiple of {x1_hat.shape[1]}.")
        snapped = self.encode(logits.argmax(-1), mask.repeat_interleave(stride, dim=1)).to(x1_hat.dtype)
        if self.rule.confidence is None:
            return snapped, 2
        likeliest = logits.double().softmax(-1).amax(-1)
        snaps = (likeliest > self.rule.confidence).unflatten(1, (-1, stride)).all(-1)
        return torch.where(snaps[..., None], snapped, x1_hat), 2
