"""Whether an autoregressive readout uses its latents, or is fluent without them.

It scores held-out text three times, given the same tokens before each: with the text's own latent, with another text's,
and with none. If perplexity does not rise without the latent, the fluency is the readout's own. Legend: B examples,
L tokens.

"No latent" is isotropic noise that the readout takes for noise of ``BLANK_LEVEL``: rms sqrt(1 + BLANK_LEVEL^2), that of
a latent of unit variance with such noise. Masking every latent would not do: attention without keys averages over all.
"""

from collections.abc import Callable, Sequence
from math import exp, sqrt

import torch
from torch import Tensor

from fewstep.diagnostics.cci import TokenConditionals
from fewstep.diagnostics.result import Axes, Estimate, Result, Row, curves_over, mean_of_all
from fewstep.metrics.intervals import Interval
from fewstep.shapes import randn

BLANK_LEVEL = 2.0
"""The noise level that stands for no latent: the largest that the shipped training shows the head."""
MAX_NATS = 700.0
"""Nats per token whose exponential is still a float."""


@torch.no_grad()
def listening(
    conditionals_at: Callable[[float], TokenConditionals],
    z: Tensor,
    ids: Tensor,
    level: float,
    generator: torch.Generator,
    *,
    name: str = "listening",
) -> Result:
    """Perplexity of ``ids`` (B, L) with three kinds of latents; ``conditionals_at(level)`` is the readout for noise.

    ``z`` (B, ...) are the texts' own latents; another text's are those of the example before. Both get the same noise
    of ``level`` (rms). Rows ``NAME_perplexity_right``, ``_other`` and ``_none``; ``NAME_gain_nats`` per token that the
    right latent saves against none, and ``NAME_misled_nats`` that another's costs against none: both near 0 for a
    readout that does not use its latents. Sums run over all tokens, in float64.
    """
    if len(z) < 2 or len(ids) != len(z):
        raise ValueError(f"latents {tuple(z.shape)}, ids {tuple(ids.shape)}: expected at least two, one latent a text.")
    if not 0 <= level < float("inf"):
        raise ValueError(f"level is {level}: expected a finite noise level of at least 0 (rms).")
    noise = randn(tuple(z.shape), z, generator).to(z.dtype)
    blank = sqrt(1 + BLANK_LEVEL**2) * randn(tuple(z.shape), z, generator).to(z.dtype)
    read, blind = conditionals_at(level), conditionals_at(BLANK_LEVEL)
    right, other = (_token_nats(read, latent + level * noise, ids) for latent in (z, z.roll(1, 0)))
    none = _token_nats(blind, blank, ids)
    note = f"noise level {level:g}"
    perplexities = (
        ("right", right, note),
        ("other", other, f"{note}; another text's latent"),
        ("none", none, f"pure noise, level {BLANK_LEVEL:g}"),
    )
    rows = (
        *(Row(f"{name}_perplexity_{key}", _perplexity(nats, generator), "", note) for key, nats, note in perplexities),
        Row(f"{name}_gain_nats", mean_of_all(none - right, generator), "nats per token", "saved by the right latent"),
        Row(f"{name}_misled_nats", mean_of_all(other - none, generator), "nats per token", "cost of another's latent"),
    )
    return Result(name, rows, facts={"level": float(level), "blank_level": BLANK_LEVEL})


def listening_curve(
    conditionals_at: Callable[[float], TokenConditionals],
    z: Tensor,
    ids: Tensor,
    levels: Sequence[float],
    generator: torch.Generator,
) -> Result:
    """:func:`listening` at each of ``levels``, each with noise of its own: rows ``listening_noise_LEVEL_gain_nats``."""
    results = [
        listening(conditionals_at, z, ids, level, generator, name=f"listening_noise_{level:g}") for level in levels
    ]
    labels = {"right": "right latent", "other": "another text's", "none": "no latent"}
    return Result(
        "listening_noise",
        tuple(result.rows[3] for result in results),
        curves_over(levels, results, labels),
        Axes("Does the commitment head listen?", "noise level", "perplexity of held-out text", log_y=True),
        {"levels": tuple(map(float, levels)), "misled_nats": tuple(result.rows[4].estimate for result in results)},
    )


def _token_nats(read: TokenConditionals, z: Tensor, ids: Tensor) -> Tensor:
    """Nats (B, L) float64 of each of ``ids`` (B, L), given the latents and the ids before it."""
    chosen = [
        logits.double().log_softmax(-1).gather(-1, tokens[:, None])[:, 0]
        for logits, tokens in zip(read.logits(z, ids), ids, strict=True)
    ]
    return -torch.stack(chosen)


def _perplexity(nats: Tensor, generator: torch.Generator) -> Estimate:
    """Of nats (B, L), with its interval; undetermined where a float cannot hold it."""
    mean = mean_of_all(nats, generator)
    if mean.value is None or mean.interval is None or not mean.interval.high < MAX_NATS:
        return Estimate(None, None, mean.num_examples)
    return Estimate(exp(mean.value), Interval(exp(mean.interval.low), exp(mean.interval.high)), mean.num_examples)
