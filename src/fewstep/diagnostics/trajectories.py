"""When along a trajectory a token is decided. This project's definitions, after arXiv:2606.30705.

Legend: B examples, L tokens, N predictions of the clean latent along a trajectory, M continuations.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from fewstep.diagnostics.curves import estimate_series
from fewstep.diagnostics.results import DiagnosticRow, Estimate, Picture, Series, mean_estimate

ContinueFrom = Callable[[Tensor, float, torch.Generator], Tensor]
"""State x_t (B, ...), its time t and a source of noise to the latents x_1 (B, ...) at the end."""

Read = Callable[[Tensor], Tensor]
"""Latents (B, ...) to token ids (B, L) int64, always the same for the same latents."""


@dataclass(frozen=True)
class Commitment:
    """How far tokens are decided at the states of a trajectory: 1 decided, 0 as open as the unigram prior.

    ``values`` at ``times``, means over tokens. The collision probability is estimated without bias, so a value may
    come out a little under 0. Undetermined where the corpus has one token only.
    """

    name: str
    times: tuple[float, ...]
    values: tuple[Estimate, ...]
    num_continuations: int
    unigram_collision: float

    def rows(self) -> tuple[DiagnosticRow, ...]:
        """One row a time."""
        note = f"{self.num_continuations} continuations"
        return tuple(
            DiagnosticRow(f"{self.name}_at_{time:.3g}", value, note=note)
            for time, value in zip(self.times, self.values, strict=True)
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values, fit for JSON."""
        return asdict(self)

    def picture(self) -> Picture:
        """Commitment over time."""
        line = estimate_series("commitment", self.times, self.values)
        return Picture("Commitment along the trajectory", "time t", "commitment", (line,))


@dataclass(frozen=True)
class LateFlips:
    """``rate``: share of tokens that change between the last two of ``num_predictions`` predictions."""

    name: str
    rate: Estimate
    num_predictions: int

    def rows(self) -> tuple[DiagnosticRow, ...]:
        """The rate."""
        return (DiagnosticRow(self.name, self.rate, note=f"{self.num_predictions} predictions"),)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, fit for JSON."""
        return asdict(self)

    def picture(self) -> Picture | None:
        """None: it is one number."""
        return None


@dataclass(frozen=True)
class CommitStep:
    """The step after which a token never changes again.

    ``mean`` over tokens, steps counted from 1; ``shares`` (N) of the tokens that settle at steps 1 .. N, 0 throughout
    where no token counts.
    """

    name: str
    mean: Estimate
    shares: tuple[float, ...]

    def rows(self) -> tuple[DiagnosticRow, ...]:
        """The mean step."""
        return (DiagnosticRow(self.name, self.mean, "step", f"of {len(self.shares)}"),)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, fit for JSON."""
        return asdict(self)

    def picture(self) -> Picture:
        """Histogram of the step."""
        bars = Series("tokens", tuple(float(k + 1) for k in range(len(self.shares))), self.shares)
        return Picture("Step after which a token stays", "step", "share of tokens", (bars,), kind="bars")


def unigram_collision(ids: Tensor, mask: Tensor | None = None) -> float:
    """Probability that two tokens of a corpus, drawn at random with replacement, are equal: sum_v p_v^2.

    ``ids`` of any shape, int64; ``mask`` like it, true at tokens that count. Raises ValueError where none counts.
    """
    tokens = ids.flatten() if mask is None else ids[mask.bool()]
    if not len(tokens):
        raise ValueError("no token counts: the collision probability needs at least 1, pass real tokens.")
    counts = torch.unique(tokens, return_counts=True)[1].double()
    return float((counts / counts.sum()).square().sum())


@torch.no_grad()
def commitment(
    continue_from: ContinueFrom,
    read: Read,
    states: Sequence[tuple[float, Tensor]],
    *,
    num_continuations: int = 16,
    unigram_collision: float,
    mask: Tensor | None = None,
    generator: torch.Generator,
    name: str = "commitment",
) -> Commitment:
    """Whether tokens are decided at given states (t, x_t), x_t (B, ...), whatever happens on the way to the end.

    Each state is continued M times; with c the share of pairs of continuations that agree on a token (an unbiased
    estimate of its collision probability) and u = ``unigram_collision`` of the corpus, commitment is
    (c - u) / (1 - u), averaged over the tokens where ``mask`` (B, L) is true. This project's definition, after
    arXiv:2606.30705.

    ``continue_from`` must draw independent noise of re-injection strength 1 each time it is called, whatever sampler
    is under study: deterministic continuations always agree. A last step adds no noise, so at the state before it, as
    at t = 1, the value is 1 by construction. Costs M continuations a state. Raises ValueError for no states, fewer
    than 2 continuations, and a collision probability outside [0, 1].
    """
    if not states or num_continuations < 2 or not 0 <= unigram_collision <= 1:
        raise ValueError(
            f"{len(states)} states, num_continuations {num_continuations}, unigram_collision {unigram_collision}: "
            "expected at least 1 state, at least 2 continuations and a probability."
        )
    values = []
    for t, x_t in states:
        ids = torch.stack([read(continue_from(x_t, float(t), generator)) for _ in range(num_continuations)])
        collision = _collision(ids)
        weights = _weights(collision, mask)
        decided = (collision - unigram_collision) / max(1 - unigram_collision, 1e-12)
        known = mean_estimate(decided, weights, generator)
        values.append(known if unigram_collision < 1 else Estimate(None, None, known.num_examples))
    times = tuple(float(t) for t, _ in states)
    return Commitment(name, times, tuple(values), num_continuations, float(unigram_collision))


@torch.no_grad()
def late_flip_rate(
    predictions: Sequence[Tensor],
    read: Read,
    *,
    mask: Tensor | None = None,
    generator: torch.Generator,
    name: str = "late_flip_rate",
) -> LateFlips:
    """Share of tokens that differ between the last two of ``predictions`` x1_hat, each (B, ...).

    ``mask`` (B, L) is true at tokens that count. Undetermined for fewer than 2 predictions: a trajectory of one step
    has no last change. This project's definition, after arXiv:2606.30705.
    """
    if len(predictions) < 2:
        rate = Estimate(None, None, len(predictions[0]) if predictions else 0)
    else:
        before, last = (read(x1_hat) for x1_hat in predictions[-2:])
        flipped = (before != last).double()
        rate = mean_estimate(flipped, _weights(flipped, mask), generator)
    return LateFlips(name, rate, len(predictions))


@torch.no_grad()
def commit_step(
    predictions: Sequence[Tensor],
    read: Read,
    *,
    mask: Tensor | None = None,
    generator: torch.Generator,
    name: str = "commit_step",
) -> CommitStep:
    """The step k in 1 .. N from whose prediction on a token stays the same, over the tokens where ``mask`` is true.

    ``predictions`` N tensors (B, ...) of x1_hat, in order; ``mask`` (B, L). Tokens that settle at N are those that
    :func:`late_flip_rate` counts, where N > 1. This project's definition, after arXiv:2606.30705. Raises ValueError
    for no prediction.
    """
    step = settling_steps([read(x1_hat) for x1_hat in predictions]).double()
    weights = _weights(step, mask)
    counts = torch.bincount((step[weights != 0] - 1).long(), minlength=len(predictions)).double()
    shares = (counts / counts.sum().clamp(min=1)).tolist()
    return CommitStep(name, mean_estimate(step, weights, generator), tuple(shares))


def settling_steps(ids: Sequence[Tensor]) -> Tensor:
    """The step k in 1 .. N from which each token stays what it is at the end, int64 like the tokens.

    ``ids`` N tensors (B, L) of tokens, one a step, in order. This project's definition, after arXiv:2606.30705. Raises
    ValueError for no step.
    """
    if not ids:
        raise ValueError("no predictions: a trajectory of at least 1 step is needed.")
    step = torch.full_like(ids[-1], len(ids), dtype=torch.long)
    stays = torch.ones_like(ids[-1], dtype=torch.bool)
    for k in range(len(ids) - 1, 0, -1):  # back from the end, for as long as the token is the last one
        stays = stays & (ids[k - 1] == ids[-1])
        step = torch.where(stays, k, step)
    return step


def _collision(ids: Tensor) -> Tensor:
    """Share of the pairs of ``ids`` (M, B, L) along M that are equal: (B, L) float64, unbiased."""
    num = len(ids)
    agreeing = torch.zeros(ids.shape[1:], dtype=torch.float64, device=ids.device)
    for one in ids:
        agreeing += (ids == one).sum(0)
    return (agreeing - num) / (num * (num - 1))


def _weights(values: Tensor, mask: Tensor | None) -> Tensor:
    """One for each of ``values`` (B, L) that counts, else 0."""
    if mask is None:
        return torch.ones_like(values)
    if mask.shape != values.shape:
        raise ValueError(f"mask has shape {tuple(mask.shape)}, tokens {tuple(values.shape)}: expected equal shapes.")
    return mask.to(values)
