"""When along a trajectory a token is decided (after arXiv:2606.30705).

Legend: B examples, L tokens, N predictions of the clean latent along a trajectory, M continuations.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from fewstep.diagnostics.result import Axes, Estimate, Result, Row, Series, estimate_series, mean_of_all

ContinueFrom = Callable[[Tensor, float, torch.Generator], Tensor]
"""State x_t (B, ...), its time t and a source of noise to the latents x_1 (B, ...) at the end."""

Read = Callable[[Tensor], Tensor]
"""Latents (B, ...) to token ids (B, L) int64, always the same for the same latents."""


def unigram_collision(ids: Tensor) -> float:
    """Probability that two tokens of a corpus, drawn at random with replacement, are equal: sum_v p_v^2."""
    counts = torch.unique(ids, return_counts=True)[1].double()
    return float((counts / counts.sum()).square().sum())


@torch.no_grad()
def decidedness(
    continue_from: ContinueFrom,
    read: Read,
    states: Sequence[tuple[float, Tensor]],
    *,
    num_continuations: int = 16,
    unigram_collision: float,
    generator: torch.Generator,
) -> Result:
    """Whether tokens are decided at ``states`` (t, x_t), x_t (B, ...): 1 decided, 0 as open as the unigram prior.

    Each state is continued M = ``num_continuations`` times. With c the share of pairs of continuations that agree on a
    token (an unbiased estimate of its collision probability, so the result may fall a little under 0) and u
    ``unigram_collision`` of the corpus, it is the mean of (c - u) / (1 - u) over tokens: rows ``decidedness_at_T``.

    ``continue_from`` must draw independent noise of re-injection strength 1 in each call, whatever sampler is under
    study: deterministic continuations always agree. The last step adds no noise, so at the state before it the value
    is 1 by construction. Undetermined where the corpus has one token only.
    """
    if num_continuations < 2:
        raise ValueError(f"num_continuations is {num_continuations}: expected at least 2, pairs of them are compared.")
    estimates = []
    for t, x_t in states:
        ids = torch.stack([read(continue_from(x_t, float(t), generator)) for _ in range(num_continuations)])
        agreeing = torch.stack([(ids == continued).sum(0) for continued in ids]).sum(0).double()
        agreement = (agreeing - len(ids)) / (len(ids) * (len(ids) - 1))  # of pairs, unbiased
        values = (agreement - unigram_collision) / max(1 - unigram_collision, 1e-12)
        known = mean_of_all(values, generator)
        estimates.append(known if unigram_collision < 1 else Estimate(None, None, known.num_examples))
    times = tuple(float(t) for t, _ in states)
    note = f"{num_continuations} continuations"
    return Result(
        "decidedness",
        tuple(Row(f"decidedness_at_{t:.3g}", found, note=note) for t, found in zip(times, estimates, strict=True)),
        {"decidedness": estimate_series("decidedness", times, estimates)},
        Axes("Decidedness along the trajectory", "time t", "decidedness"),
        {"times": times, "num_continuations": num_continuations, "unigram_collision": float(unigram_collision)},
    )


@torch.no_grad()
def late_flip_rate(predictions: Sequence[Tensor], read: Read, *, generator: torch.Generator) -> Result:
    """Share of tokens that differ between the last two of ``predictions`` x1_hat, each (B, ...).

    Undetermined for fewer than 2 predictions: a trajectory of one step has no last change.
    """
    if len(predictions) < 2:
        rate = Estimate(None, None, len(predictions[0]) if predictions else 0)
    else:
        before, last = (read(x1_hat) for x1_hat in predictions[-2:])
        rate = mean_of_all(before != last, generator)
    row = Row("late_flip_rate", rate, note=f"{len(predictions)} predictions")
    return Result("late_flip_rate", (row,), facts={"num_predictions": len(predictions)})


@torch.no_grad()
def decision_step(predictions: Sequence[Tensor], read: Read, *, generator: torch.Generator) -> Result:
    """The step k in 1 .. N from whose prediction on a token stays the same: mean over tokens, and a histogram.

    ``predictions`` N tensors (B, ...) of x1_hat, in order. For N > 1 the tokens that settle at N are those that
    :func:`late_flip_rate` counts.
    """
    step = settling_steps([read(x1_hat) for x1_hat in predictions]).double()
    counts = torch.bincount((step.flatten() - 1).long(), minlength=len(predictions)).double()
    shares = tuple((counts / counts.sum().clamp(min=1)).tolist())
    return Result(
        "decision_step",
        (Row("decision_step", mean_of_all(step, generator), "step", f"of {len(shares)}"),),
        {"shares": Series("tokens", tuple(float(k + 1) for k in range(len(shares))), shares)},
        Axes("Step after which a token stays", "step", "share of tokens", kind="bars"),
    )


def settling_steps(ids: Sequence[Tensor]) -> Tensor:
    """The step k in 1 .. N from which each token stays what it is at the end, (B, L) int64.

    ``ids`` are the tokens (B, L) of each of the N steps, in order.
    """
    if not ids:
        raise ValueError("no predictions: a trajectory of at least 1 step is needed.")
    step = torch.full_like(ids[-1], len(ids), dtype=torch.long)
    stays = torch.ones_like(ids[-1], dtype=torch.bool)
    for k in range(len(ids) - 1, 0, -1):  # back from the end, for as long as the token is the last one
        stays = stays & (ids[k - 1] == ids[-1])
        step = torch.where(stays, k, step)
    return step
