"""Categorical commitment: how much of a token's uncertainty the tokens already committed to resolve.

This project's definition, after arXiv:2606.30705, whose formulas were not at hand. At a latent z draw M token
sequences from the readout, and let q_i^(m) = p(. | z, x_<i^(m)) be its distributions on the way of the m-th. With H
the entropy,

    CCI = 1 - sum_i E_m[H(q_i^(m))] / sum_i H(E_m[q_i^(m)])

A readout that decides every position by itself has CCI 0, whatever its entropy. Legend: B examples, L tokens,
V vocabulary, M draws.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from fewstep.diagnostics.curves import estimate_series
from fewstep.diagnostics.results import DiagnosticRow, Estimate, Picture, mean_estimate, ratio_estimate
from fewstep.metrics import Interval
from fewstep.shapes import randn

MIN_DRAWS = 32
"""Fewer draws see too little of the marginal: its entropy, and with it CCI, comes out too low."""

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


@dataclass(frozen=True)
class Cci:
    """CCI of a readout at some latents (this project's definition, after arXiv:2606.30705).

    ``cci`` in [0, 1], undetermined where the marginal entropy is under 1e-3 nats per token; ``committed_nats`` and
    ``marginal_nats`` are its numerator and denominator in nats per token; ``num_draws`` is M.
    """

    name: str
    cci: Estimate
    committed_nats: Estimate
    marginal_nats: Estimate
    num_draws: int

    def rows(self) -> tuple[DiagnosticRow, ...]:
        """CCI and both entropies."""
        note = f"{self.num_draws} draws"
        if self.cci.value is None:
            note += f"; undetermined: marginal entropy under {MIN_MARGINAL_NATS:g} nats per token"
        return (
            DiagnosticRow(self.name, self.cci, note=note),
            DiagnosticRow(f"{self.name}_committed_nats", self.committed_nats, "nats per token"),
            DiagnosticRow(f"{self.name}_marginal_nats", self.marginal_nats, "nats per token"),
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values, fit for JSON."""
        return asdict(self)

    def picture(self) -> Picture | None:
        """None: three numbers are better read than looked at."""
        return None


@dataclass(frozen=True)
class CciCurve:
    """CCI over isotropic noise: ``results`` at the noise ``levels``, standard deviations in the latents' own unit."""

    name: str
    levels: tuple[float, ...]
    results: tuple[Cci, ...]

    def rows(self) -> tuple[DiagnosticRow, ...]:
        """CCI at every level."""
        return tuple(result.rows()[0] for result in self.results)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, fit for JSON."""
        return asdict(self)

    def picture(self) -> Picture:
        """CCI and both entropies over the level; a level where CCI is undetermined has no point on its line."""
        lines: dict[str, list[Estimate]] = {
            "CCI": [result.cci for result in self.results],
            "committed (nats per token)": [result.committed_nats for result in self.results],
            "marginal (nats per token)": [result.marginal_nats for result in self.results],
        }
        series = tuple(estimate_series(label, self.levels, estimates) for label, estimates in lines.items())
        return Picture("Categorical commitment under noise", "noise level", "CCI, nats per token", series)


@torch.no_grad()
def cci(
    conditionals: TokenConditionals,
    z: Tensor,
    *,
    num_draws: int = MIN_DRAWS,
    draws_at_once: int = 1,
    examples_at_once: int | None = None,
    mask: Tensor | None = None,
    generator: torch.Generator,
    name: str = "cci",
) -> Cci:
    """CCI of a readout at latents ``z`` (B, ...): this project's definition, after arXiv:2606.30705 (see the module).

    ``mask`` (B, L) bool, true at tokens that count; ``num_draws`` is M. ``draws_at_once`` sequences are drawn as one
    batch of repeated rows (1 where the readout holds context an example), which is the faster the smaller B is; the
    draws depend on it, their distribution does not. Entropies are taken in float64, nats. The sums run over all counted
    tokens of all examples; intervals resample examples. A readout that ignores earlier
    tokens has exactly 0 if it answers equal input with equal output. Costs M draws and M evaluations of the logits,
    and holds three float64 tensors (B, L, V), of ``examples_at_once`` examples where that is given: it takes
    conditionals that hold nothing an example. Raises ValueError for fewer than 32 draws, fewer than 1 at once, and a
    mask that does not fit.
    """
    if num_draws < MIN_DRAWS:
        raise ValueError(
            f"num_draws is {num_draws}: expected at least {MIN_DRAWS}, with fewer CCI comes out too low; draw more."
        )
    if draws_at_once < 1:
        raise ValueError(f"draws_at_once is {draws_at_once}: expected at least 1.")
    if examples_at_once is not None and examples_at_once < 1:
        raise ValueError(f"examples_at_once is {examples_at_once}: expected at least 1, or None for all of them.")
    drawn = torch.stack(list(_draws(conditionals, z, num_draws, draws_at_once, generator)))
    size = examples_at_once or len(z)
    parts = [_entropies(conditionals, *rows) for rows in zip(z.split(size), drawn.split(size, 1), strict=True)]
    committed, marginal = (torch.cat(column) for column in zip(*parts, strict=True))
    weights = torch.ones_like(marginal) if mask is None else mask.to(marginal)
    if weights.shape != marginal.shape:
        raise ValueError(f"mask has shape {tuple(weights.shape)}, tokens {tuple(marginal.shape)}: expected equal.")
    committed_nats = mean_estimate(committed, weights, generator)
    marginal_nats = mean_estimate(marginal, weights, generator)
    ratio = ratio_estimate((marginal - committed) * weights, marginal * weights, generator)
    if marginal_nats.value is None or marginal_nats.value < MIN_MARGINAL_NATS:
        ratio = Estimate(None, None, marginal_nats.num_examples)
    return Cci(name, _within_0_and_1(ratio), committed_nats, marginal_nats, num_draws)


def cci_curve(
    conditionals_at: Callable[[float], TokenConditionals],
    z: Tensor,
    levels: Sequence[float],
    *,
    num_draws: int = MIN_DRAWS,
    draws_at_once: int = 1,
    examples_at_once: int | None = None,
    mask: Tensor | None = None,
    generator: torch.Generator,
    name: str = "cci_noise",
) -> CciCurve:
    """:func:`cci` at z + level n, n isotropic standard normal noise, for latents ``z`` (B, ...).

    ``conditionals_at(level)`` is the readout for latents with noise of that level, so that one which is told the
    level can be. n is drawn once: levels differ by the level alone. This project's definition, after
    arXiv:2606.30705. Raises ValueError for no level or a negative one, and where :func:`cci` does.
    """
    if not levels or not min(levels) >= 0:
        raise ValueError(f"levels are {list(levels)}: expected at least one noise level, none of them negative.")
    noise = randn(tuple(z.shape), z, generator).to(z.dtype)
    results = tuple(
        cci(
            conditionals_at(level),
            z + level * noise,
            num_draws=num_draws,
            draws_at_once=draws_at_once,
            examples_at_once=examples_at_once,
            mask=mask,
            generator=generator,
            name=f"{name}_{level:g}",
        )
        for level in levels
    )
    return CciCurve(name, tuple(float(level) for level in levels), results)


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


def _draws(
    conditionals: TokenConditionals, z: Tensor, num_draws: int, at_once: int, generator: torch.Generator
) -> Iterator[Tensor]:
    """``num_draws`` token sequences (B, L), ``at_once`` of them drawn together."""
    for first in range(0, num_draws, at_once):
        count = min(at_once, num_draws - first)
        ids = conditionals.draw(torch.cat([z] * count), generator)
        yield from ids.unflatten(0, (count, len(z)))


def _within_0_and_1(estimate: Estimate) -> Estimate:
    """Concavity of the entropy keeps CCI within [0, 1]; rounding may not."""
    if estimate.value is None or estimate.interval is None:
        return estimate
    value, low, high = (min(max(x, 0.0), 1.0) for x in (estimate.value, estimate.interval.low, estimate.interval.high))
    return Estimate(value, Interval(low, high), estimate.num_examples)
