"""Whether the commitment head listens to its latents, or is fluent without them (this project's definition).

The head scores held-out text three times, told the same tokens before each: with the text's own latent, with another
text's, and with none. Perplexity that does not rise without the latent was the head's own. B examples, K latent
positions of D dimensions, L tokens.

"No latent" is isotropic noise that the head is told to be ``blank_level`` strong: rms sqrt(1 + blank_level^2), that of
a latent of unit variance with such noise. A mask that hides every latent would not do, since attention without anything
to see averages over all.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import exp, sqrt
from typing import Any

import torch
from torch import Tensor

from fewstep.diagnostics import DiagnosticRow, Estimate, Picture, estimate_series
from fewstep.diagnostics.results import ratio_estimate
from fewstep.metrics import Interval
from fewstep.readouts import CommitmentHead
from fewstep.shapes import randn

BLANK_LEVEL = 2.0
"""The noise level that stands for no latent: the largest that the shipped training shows the head."""


MAX_NATS = 700.0
"""Nats per token whose exponential is still a float."""


@dataclass(frozen=True)
class Listening:
    """Perplexities of text under a head that reads latents with noise of ``level`` (rms).

    ``right``, ``other`` and ``blank``: with the text's own latent, with another text's and with none (noise told as
    ``blank_level``). ``gain_nats`` per token that the right latent saves against none, and ``misled_nats`` per token
    that another's costs against none: both near 0 for a head that does not listen. Intervals resample examples.
    """

    name: str
    level: float
    blank_level: float
    right: Estimate
    other: Estimate
    blank: Estimate
    gain_nats: Estimate
    misled_nats: Estimate

    def rows(self) -> tuple[DiagnosticRow, ...]:
        """Three perplexities and two differences."""
        note = f"noise level {self.level:g}"
        return (
            DiagnosticRow(f"{self.name}_perplexity_right", self.right, note=note),
            DiagnosticRow(f"{self.name}_perplexity_other", self.other, note=f"{note}; another text's latent"),
            DiagnosticRow(f"{self.name}_perplexity_none", self.blank, note=f"pure noise, level {self.blank_level:g}"),
            DiagnosticRow(f"{self.name}_gain_nats", self.gain_nats, "nats per token", "saved by the right latent"),
            DiagnosticRow(f"{self.name}_misled_nats", self.misled_nats, "nats per token", "cost of another's latent"),
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values, fit for JSON."""
        return asdict(self)

    def picture(self) -> Picture | None:
        """None: three numbers are read, not looked at."""
        return None


@dataclass(frozen=True)
class ListeningCurve:
    """:class:`Listening` at several noise ``levels``, ascending or not; ``results`` one each."""

    name: str
    levels: tuple[float, ...]
    results: tuple[Listening, ...]

    def rows(self) -> tuple[DiagnosticRow, ...]:
        """The nats that the right latent saves, a line a level."""
        unit, note = "nats per token", "saved by the right latent"
        return tuple(DiagnosticRow(f"{one.name}_gain_nats", one.gain_nats, unit, note) for one in self.results)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, fit for JSON."""
        return asdict(self)

    def picture(self) -> Picture:
        """Perplexity over the noise level, a line a latent."""
        lines = {
            "right latent": [one.right for one in self.results],
            "another text's": [one.other for one in self.results],
            "no latent": [one.blank for one in self.results],
        }
        series = tuple(estimate_series(label, self.levels, estimates) for label, estimates in lines.items())
        title = "Does the commitment head listen?"
        return Picture(title, "noise level", "perplexity of held-out text", series, log_y=True)


@torch.no_grad()
def listening(
    head: CommitmentHead,
    z: Tensor,
    ids: Tensor,
    mask: Tensor,
    level: float,
    generator: torch.Generator,
    *,
    blank_level: float = BLANK_LEVEL,
    name: str = "listening",
) -> Listening:
    """Perplexity of ``ids`` (B, L), ``mask`` (B, L) true at real tokens, under ``head`` with three kinds of latents.

    ``z`` (B, K, D) are the texts' own; another's are those of the example before. Both get the same noise of ``level``
    (rms), which the head is told. See the module for what stands for no latent. Sums run over all real tokens, in
    float64. Raises ``ValueError`` for fewer than two examples, shapes that do not fit, and levels that are not finite
    or below 0.
    """
    if len(z) < 2 or len(ids) != len(z) or ids.shape != mask.shape:
        raise ValueError(
            f"latents {tuple(z.shape)}, ids {tuple(ids.shape)}, mask {tuple(mask.shape)}: expected at least two "
            "examples of each, one latent a text."
        )
    for what, value in (("level", level), ("blank_level", blank_level)):
        if not 0 <= value < float("inf"):
            raise ValueError(f"{what} is {value}: expected a finite noise level of at least 0 (rms).")
    noise = randn(tuple(z.shape), z, generator).to(z.dtype)
    blank = sqrt(1 + blank_level**2) * randn(tuple(z.shape), z, generator).to(z.dtype)
    read = (
        (z + level * noise, level),
        (z.roll(1, 0) + level * noise, level),
        (blank, blank_level),
    )
    counted = mask.double()
    right, other, none = (
        head.token_nats(latent, ids, mask, latent.new_full((len(z),), told)).double() * counted for latent, told in read
    )

    def mean(nats: Tensor) -> Estimate:
        return ratio_estimate(nats, counted, generator)

    return Listening(
        name,
        float(level),
        float(blank_level),
        right=_exponential(mean(right)),
        other=_exponential(mean(other)),
        blank=_exponential(mean(none)),
        gain_nats=mean(none - right),
        misled_nats=mean(other - none),
    )


def listening_curve(
    head: CommitmentHead,
    z: Tensor,
    ids: Tensor,
    mask: Tensor,
    levels: Sequence[float],
    generator: torch.Generator,
    *,
    blank_level: float = BLANK_LEVEL,
    name: str = "listening_noise",
) -> ListeningCurve:
    """:func:`listening` at each of ``levels``, noise drawn anew at each. Raises ``ValueError`` for none, and where
    :func:`listening` does."""
    if not levels:
        raise ValueError("no noise level to listen at: expected at least one.")
    results = tuple(
        listening(head, z, ids, mask, level, generator, blank_level=blank_level, name=f"{name}_{level:g}")
        for level in levels
    )
    return ListeningCurve(name, tuple(float(level) for level in levels), results)


def _exponential(nats: Estimate) -> Estimate:
    """The perplexity of mean nats per token; the exponential keeps the order, so the interval's ends go along.

    Undetermined where it is beyond what a float holds.
    """
    if nats.value is None or nats.interval is None or not nats.interval.high < MAX_NATS:
        return Estimate(None, None, nats.num_examples)
    interval = Interval(exp(nats.interval.low), exp(nats.interval.high))
    return Estimate(exp(nats.value), interval, nats.num_examples)
