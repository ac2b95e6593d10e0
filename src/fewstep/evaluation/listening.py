"""Whether the commitment head uses its latents, or is fluent without them.

The head scores held-out text three times, given the same tokens before each: with the text's own latent, with another
text's, and with none. If perplexity does not rise without the latent, the fluency is the head's own. Legend:
B examples, K latent positions of D dimensions, L tokens.

"No latent" is isotropic noise that the head takes for noise of ``blank_level``: rms sqrt(1 + blank_level^2), that of a
latent of unit variance with such noise. Masking every latent would not do: attention without keys averages over all.
"""

from collections.abc import Sequence
from math import exp, sqrt

import torch
from torch import Tensor

from fewstep.diagnostics.result import Axes, Estimate, Result, Row, estimate_series, ratio_estimate
from fewstep.metrics.intervals import Interval
from fewstep.readouts import CommitmentHead
from fewstep.shapes import randn

BLANK_LEVEL = 2.0
"""The noise level that stands for no latent: the largest that the shipped training shows the head."""


MAX_NATS = 700.0
"""Nats per token whose exponential is still a float."""


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
) -> Result:
    """Perplexity of ``ids`` (B, L), ``mask`` (B, L) true at real tokens, under ``head`` with three kinds of latents.

    ``z`` (B, K, D) are the texts' own latents; another text's are those of the example before. Both get the same noise
    of ``level`` (rms), which the head is given. Rows ``NAME_perplexity_right``, ``_other`` and ``_none``;
    ``NAME_gain_nats`` per token that the right latent saves against none, and ``NAME_misled_nats`` that another's costs
    against none: both near 0 for a head that does not use its latents. Sums run over all real tokens, in float64.
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
        head.token_nats(latent, ids, mask, latent.new_full((len(z),), noise_level)).double() * counted
        for latent, noise_level in read
    )

    def mean(nats: Tensor) -> Estimate:
        return ratio_estimate(nats, counted, generator)

    note = f"noise level {level:g}"
    rows = (
        Row(f"{name}_perplexity_right", _exponential(mean(right)), note=note),
        Row(f"{name}_perplexity_other", _exponential(mean(other)), note=f"{note}; another text's latent"),
        Row(f"{name}_perplexity_none", _exponential(mean(none)), note=f"pure noise, level {blank_level:g}"),
        Row(f"{name}_gain_nats", mean(none - right), "nats per token", "saved by the right latent"),
        Row(f"{name}_misled_nats", mean(other - none), "nats per token", "cost of another's latent"),
    )
    return Result(name, rows, facts={"level": float(level), "blank_level": float(blank_level)})


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
) -> Result:
    """:func:`listening` at each of ``levels``, each with noise of its own: rows ``NAME_LEVEL_gain_nats``."""
    if not levels:
        raise ValueError("no noise level to listen at: expected at least one.")
    results = [
        listening(head, z, ids, mask, level, generator, blank_level=blank_level, name=f"{name}_{level:g}")
        for level in levels
    ]
    labels = {"right": "right latent", "other": "another text's", "none": "no latent"}
    return Result(
        name,
        tuple(result.rows[3] for result in results),
        {
            key: estimate_series(label, levels, [result.rows[place].estimate for result in results])
            for place, (key, label) in enumerate(labels.items())
        },
        Axes("Does the commitment head listen?", "noise level", "perplexity of held-out text", log_y=True),
        {"levels": tuple(map(float, levels)), "misled_nats": tuple(result.rows[4].estimate for result in results)},
    )


def _exponential(nats: Estimate) -> Estimate:
    """The perplexity of mean nats per token and its interval; undetermined where a float cannot hold it."""
    if nats.value is None or nats.interval is None or not nats.interval.high < MAX_NATS:
        return Estimate(None, None, nats.num_examples)
    interval = Interval(exp(nats.interval.low), exp(nats.interval.high))
    return Estimate(exp(nats.value), interval, nats.num_examples)
