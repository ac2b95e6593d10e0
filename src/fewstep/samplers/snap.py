"""Snap: the clean estimate inside the loop is replaced by the latents of its likeliest tokens.

A snapped position holds the latent of definite tokens, no longer a mean between several texts. B examples, K latent
positions of D dimensions, L tokens, s = L / K tokens per position (the stride), V vocabulary.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.diagnostics import margins

MaskedDecode = Callable[[Tensor, Tensor], Tensor]
"""Latents (B, K, D) and their mask (B, K) to logits (B, L, V)."""

Encode = Callable[[Tensor, Tensor], Tensor]
"""Token ids (B, L) and their mask (B, L) to latents (B, K, D)."""

SnapMeasure = Callable[[MaskedDecode, Tensor, Tensor, Tensor], tuple[Tensor, int]]
"""(decode, x1_hat (B, K, D), mask (B, K), logits (B, L, V)) -> how decided each token is (B, L), and passes spent."""


def confidence(decode: MaskedDecode, x1_hat: Tensor, mask: Tensor, logits: Tensor) -> tuple[Tensor, int]:
    """Probability of the likeliest token, float64 in [0, 1]: the rule of masked models (arXiv:2202.04200)."""
    return logits.double().softmax(-1).amax(-1).clamp(max=1.0), 0


def distance(decode: MaskedDecode, x1_hat: Tensor, mask: Tensor, logits: Tensor) -> tuple[Tensor, int]:
    """First-order distance m / |grad m| to the decision boundary (:func:`fewstep.diagnostics.margins`), float64.

    In units of the whitened latents' standard deviation. Expensive: one forward and one backward pass per token.
    """
    with torch.inference_mode(False):
        real = mask.clone()  # autograd saves it, so it must not come from the caller's inference mode
    positions = torch.arange(logits.shape[1], device=x1_hat.device).expand(len(x1_hat), -1)
    return margins(lambda z: decode(z, real), x1_hat, positions).distance, logits.shape[1]


SNAP_MEASURES: dict[str, SnapMeasure] = {"confidence": confidence, "distance": distance}


@dataclass(frozen=True)
class SnapRule:
    """When and where to snap: in the ``last`` steps (None: every step), where ``measure`` exceeds ``threshold``.

    Without a measure every position snaps. Raises ValueError for ``last`` < 1 and a threshold that is not a number.
    """

    last: int | None = None
    measure: SnapMeasure | None = None
    threshold: float = 0.0

    def __post_init__(self) -> None:
        if self.last is not None and self.last < 1:
            raise ValueError(f"snap in the last {self.last} steps: expected a whole number of at least 1")
        if math.isnan(self.threshold):
            raise ValueError(f"snap threshold is {self.threshold}: expected a number")

    def acts(self, step: int, num_steps: int) -> bool:
        """Whether step 0..N-1 of N snaps."""
        return self.last is None or step >= num_steps - self.last


def parse_snap(text: str) -> SnapRule:
    """The rule that ``text`` names: "every" (all positions at all steps), "last:N" (all positions at the last N steps),
    "confidence:P" (positions whose tokens all have a probability above P) or "distance:D" (whose decision boundary is
    farther than D). Raises ValueError for anything else."""
    name, _, number = text.strip().partition(":")
    try:
        if text.strip() == "every":
            return SnapRule()
        if name == "last":
            return SnapRule(last=int(number))
        return SnapRule(measure=SNAP_MEASURES[name], threshold=float(number))
    except (KeyError, ValueError):
        names = ", ".join(f"{measure}:NUMBER" for measure in SNAP_MEASURES)
        raise ValueError(
            f"snap is {text!r}: expected every, last:N with N >= 1, {names}, as in confidence:0.9"
        ) from None


class Snap:
    """The correction x1_hat -> likeliest tokens -> encode -> x1_hat, for :class:`fewstep.samplers.FlowSampler`.

    ``decode`` and ``encode`` are a parallel readout and the autoencoder it reads, ``rule`` a :class:`SnapRule` or its
    text. A position snaps when all its tokens exceed the threshold; all tokens are encoded together, so the encoder
    sees the likeliest text as a whole. Costs two forward passes, and those of the measure, at each step that snaps.
    After the commitment of arXiv:2606.30705.
    """

    def __init__(self, decode: MaskedDecode, encode: Encode, rule: str | SnapRule = "every") -> None:
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
        if self.rule.measure is None:
            return snapped, 2
        decided, passes = self.rule.measure(self.decode, x1_hat, mask, logits)
        snaps = (decided > self.rule.threshold).unflatten(1, (-1, stride)).all(-1)
        return torch.where(snaps[..., None], snapped, x1_hat), 2 + passes
