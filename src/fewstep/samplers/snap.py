"""Snap: estimates in the loop become the latents of their likeliest tokens; apart because most samplers never do that.

B examples, K latent positions of D dimensions, L tokens, V vocabulary.
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
    """Snap in the ``last`` steps (None: all), where a position's tokens are likelier than ``confidence`` (None: all).

    The confidence is that of masked models (arXiv:2202.04200).
    """

    last: int | None = None
    confidence: float | None = None


def parse_snap(text: str) -> SnapRule:
    """The rule that "every", "last:N" or "confidence:P" names. Raises ``ValueError`` for anything else."""
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

    ``decode`` (latents to logits) and ``encode`` (ids to latents) are a parallel readout and the autoencoder it reads;
    the encoder sees the likeliest text as a whole. Costs two forward passes at each step that snaps. After the
    commitment of arXiv:2606.30705.
    """

    def __init__(self, decode: Masked, encode: Masked, rule: str | SnapRule = "every") -> None:
        self.decode = decode
        self.encode = encode
        self.rule = parse_snap(rule) if isinstance(rule, str) else rule

    @torch.no_grad()
    def __call__(self, x1_hat: Tensor, step: int, num_steps: int, mask: Tensor) -> tuple[Tensor, int]:
        """The estimate (B, K, D) and the forward passes; where nothing snaps, ``x1_hat`` bit for bit."""
        if self.rule.last is not None and step < num_steps - self.rule.last:
            return x1_hat, 0
        logits = self.decode(x1_hat, mask)
        stride = logits.shape[1] // x1_hat.shape[1]
        snapped = self.encode(logits.argmax(-1), mask.repeat_interleave(stride, dim=1)).to(x1_hat.dtype)
        if self.rule.confidence is None:
            return snapped, 2
        likeliest = logits.double().softmax(-1).amax(-1)
        snaps = (likeliest > self.rule.confidence).unflatten(1, (-1, stride)).all(-1)
        return torch.where(snaps[..., None], snapped, x1_hat), 2
