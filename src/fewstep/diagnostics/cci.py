"""CCI, categorical commitment: how much of a token's uncertainty the earlier tokens resolve (after arXiv:2606.30705).

At a latent z draw M token sequences x^(m) from the readout, and let q_i^(m) = p(. | z, x_<i^(m)) be its distribution of
token i given the m-th draw's earlier tokens. With H the entropy in nats,

    CCI = 1 - sum_i E_m[H(q_i^(m))] / sum_i H(E_m[q_i^(m)])            in [0, 1]

A readout that decides every position by itself has CCI 0. Legend: B examples, L tokens, V vocabulary. The formula is
ours, see docs/reference/diagnostics.md.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from fewstep.diagnostics.result import Axes, Estimate, Result, Row, curves_over, mean_estimate, ratio_estimate
from fewstep.metrics.intervals import Interval
from fewstep.shapes import randn

MIN_DRAWS = 32
"""Fewer draws make the marginal look narrower than it is, and CCI too small."""

MIN_MARGINAL_NATS = 1e-3
"""Marginal entropy, nats per token, below which there is nothing to commit to and CCI is undetermined."""


class TokenConditionals(Protocol):
    """A categorical readout as a chain of conditionals. ``z`` (B, ...) latents, ``ids`` (B, L) int64."""

    def draw(self, z: Tensor, generator: torch.Generator) -> Tensor:
        """Token ids (B, L) drawn at temperature 1, each given the latents and the tokens before it."""
        ...

    def logits(self, z: Tensor, ids: Tensor) -> Tensor:
        """Logits (B, L, V) of each token given the latents and the tokens of ``ids`` before it."""
        ...


@torch.no_grad()
def cci(
    conditionals: TokenConditionals,
    z: Tensor,
    *,
    written: Tensor | None = None,
    num_draws: int = MIN_DRAWS,
    draws_at_once: int = 1,
    examples_at_once: int | None = None,
    generator: torch.Generator,
    name: str = "cci",
) -> Result:
    """CCI of a readout at latents ``z`` (B, ...), from ``num_draws`` = M draws.

    Rows: ``NAME``, and its numerator and denominator in nats per token, ``NAME_committed_nats`` and
    ``NAME_marginal_nats``. The sums run over all tokens of all examples, in float64; or, of conditionals that are given
    a part of their tokens, over those where ``written`` (B, L) is true. ``draws_at_once`` sequences are
    drawn as one batch of repeated rows (1 where the readout holds context for each example): faster where B is small;
    the draws depend on it, their distribution does not. Costs M draws and M evaluations of the logits, and holds three
    float64 tensors (B, L, V), or (``examples_at_once``, L, V) for conditionals that hold no context.
    """
    if num_draws < MIN_DRAWS:
        raise ValueError(
            f"num_draws is {num_draws}: expected at least {MIN_DRAWS}, with fewer CCI comes out too low; draw more."
        )
    counts = [min(draws_at_once, num_draws - first) for first in range(0, num_draws, draws_at_once)]
    draws = [conditionals.draw(torch.cat([z] * count), generator).unflatten(0, (count, len(z))) for count in counts]
    drawn = torch.cat(draws)
    size = examples_at_once or len(z)
    parts = [_entropies(conditionals, *rows) for rows in zip(z.split(size), drawn.split(size, 1), strict=True)]
    committed, marginal = (torch.cat(column) for column in zip(*parts, strict=True))
    counted = torch.ones_like(marginal) if written is None else written.to(marginal)
    committed_nats = mean_estimate(committed, counted, generator)
    marginal_nats = mean_estimate(marginal, counted, generator)
    ratio = ratio_estimate((marginal - committed) * counted, marginal * counted, generator)
    note = f"{num_draws} draws"
    if marginal_nats.value is None or marginal_nats.value < MIN_MARGINAL_NATS:
        ratio = Estimate(None, None, marginal_nats.num_examples)
        note += f"; undetermined: marginal entropy under {MIN_MARGINAL_NATS:g} nats per token"
    elif ratio.value is not None and ratio.interval is not None:  # concavity keeps it within 0 and 1, rounding may not
        value, low, high = (min(max(x, 0.0), 1.0) for x in (ratio.value, ratio.interval.low, ratio.interval.high))
        ratio = Estimate(value, Interval(low, high), ratio.num_examples)
    rows = (
        Row(name, ratio, note=note),
        Row(f"{name}_committed_nats", committed_nats, "nats per token"),
        Row(f"{name}_marginal_nats", marginal_nats, "nats per token"),
    )
    return Result(name, rows, facts={"num_draws": num_draws})


def cci_curve(
    conditionals_at: Callable[[float], TokenConditionals],
    z: Tensor,
    levels: Sequence[float],
    *,
    draws_at_once: int = 1,
    examples_at_once: int | None = None,
    generator: torch.Generator,
) -> Result:
    """:func:`cci` at z + level n for each of ``levels``, n standard normal noise drawn once for all of them.

    ``conditionals_at(level)`` is the readout for latents with noise of that level. Rows ``cci_noise_LEVEL``; curves of
    CCI and of both entropies over the level.
    """
    if not levels or not min(levels) >= 0:
        raise ValueError(f"levels are {list(levels)}: expected at least one noise level, none of them negative.")
    noise = randn(tuple(z.shape), z, generator).to(z.dtype)
    results = [
        cci(
            conditionals_at(level),
            z + level * noise,
            draws_at_once=draws_at_once,
            examples_at_once=examples_at_once,
            generator=generator,
            name=f"cci_noise_{level:g}",
        )
        for level in levels
    ]
    labels = {"cci": "CCI", "committed": "committed (nats per token)", "marginal": "marginal (nats per token)"}
    return Result(
        "cci_noise",
        tuple(result.rows[0] for result in results),
        curves_over(levels, results, labels),
        Axes("Categorical commitment under noise", "noise level", "CCI, nats per token"),
        {"levels": tuple(map(float, levels)), "num_draws": MIN_DRAWS},
    )


def _entropies(conditionals: TokenConditionals, z: Tensor, drawn: Tensor) -> tuple[Tensor, Tensor]:
    """Mean entropy given the tokens before, and entropy of the mean, (B, L) each, over ``drawn`` ids (M, B, L)."""
    mean, committed = torch.zeros(()), torch.zeros(())
    for m, ids in enumerate(drawn, 1):
        q = conditionals.logits(z, ids).double().softmax(-1)
        entropy = torch.special.entr(q).sum(-1)
        if m == 1:
            mean, committed = q, entropy
        else:  # steps towards the new value: equal distributions leave the mean as it is, to the last bit
            mean = mean + (q - mean) / m
            committed = committed + (entropy - committed) / m
    return committed, torch.special.entr(mean).sum(-1)
