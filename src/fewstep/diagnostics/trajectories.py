"""Along a trajectory: when a token is decided, and how fast the velocity changes with the state (arXiv:2606.30705).

Legend: B examples, L tokens, N predictions of the clean latent along a trajectory, M continuations, T states.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from fewstep.diagnostics.decoding import directional, norms, pullback, random_directions, unit_rows
from fewstep.diagnostics.result import Axes, Estimate, Result, Row, Series, estimate_series, mean_of_all, resampled

ContinueFrom = Callable[[Tensor, float, torch.Generator], Tensor]
"""State x_t (B, ...), its time t and a source of noise to the latents x_1 (B, ...) at the end."""

Read = Callable[[Tensor], Tensor]
"""Latents (B, ...) to token ids (B, L) int64, always the same for the same latents."""

Velocity = Callable[[Tensor, Tensor], Tensor]
"""x (B, ...) and t (B,) float32 to v(x, t), shaped like x; row b depends on row b of x alone."""

TOLERANCE = 1e-4
"""The iteration ends when no example's singular value grows by more than this share."""


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
    times, note = tuple(float(t) for t, _ in states), f"{num_continuations} continuations"
    return Result(
        "decidedness",
        tuple(Row(f"decidedness_at_{t:.3g}", value, note=note) for t, value in zip(times, estimates, strict=True)),
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
    step = torch.full_like(ids[-1], len(ids), dtype=torch.long)
    stays = torch.ones_like(ids[-1], dtype=torch.bool)
    for k in range(len(ids) - 1, 0, -1):  # back from the end, for as long as the token is the last one
        stays = stays & (ids[k - 1] == ids[-1])
        step = torch.where(stays, k, step)
    return step


def stiffness(
    velocity: Velocity,
    states: Sequence[tuple[float, Tensor]],
    *,
    num_iterations: int = 20,
    generator: torch.Generator,
) -> Result:
    """Largest singular value of J = d v(x, t) / d x at the ``states`` (t, x_t), x_t (B, ...), mean over examples.

    Row ``stiffness_peak``: the highest of the means over time. Power iteration on J'J from a random direction, all
    examples at once, at most ``num_iterations`` times; it approaches the value from below, and the fact ``last_growth``
    (the largest relative growth in a last iteration) says how far it may still be. Runs in the dtype of x_t, float32 at
    least; an iteration costs one forward-mode and one reverse-mode derivative, about 4 evaluations. A velocity that is
    not finite gives an undetermined value.
    """
    columns = [_largest_singular_values(velocity, float(t), x_t, num_iterations, generator) for t, x_t in states]
    times = tuple(float(t) for t, _ in states)
    table = torch.stack([values for values, _ in columns], 1)
    estimates = [mean_of_all(column[:, None], generator) for column in table.unbind(1)]
    peak, peak_time = Estimate(None, None, len(table)), None
    if bool(table.isfinite().all()):
        highest, place = table.mean(0).max(0)
        peak = resampled(float(highest), table, lambda rows: rows.mean(-2).amax(-1), generator)
        peak_time = times[int(place)]
    where = "undetermined" if peak_time is None else f"at t = {peak_time:.3g}"
    return Result(
        "stiffness",
        (Row("stiffness_peak", peak, "1 / time", where),),
        {"stiffness": estimate_series("largest singular value", times, estimates)},
        Axes("Stiffness of the velocity", "time t", "largest singular value of dv/dx"),
        {"times": times, "peak_time": peak_time, "last_growth": max(growth for _, growth in columns)},
    )


def _largest_singular_values(
    velocity: Velocity, time: float, x_t: Tensor, num_iterations: int, generator: torch.Generator
) -> tuple[Tensor, float]:
    """(B,) float64 on the CPU, and the largest relative growth in the last iteration."""
    with torch.inference_mode(False):
        t = torch.full((len(x_t),), time, dtype=torch.float32, device=x_t.device)

    def at_time(x: Tensor) -> Tensor:
        return velocity(x, t)

    u = random_directions(x_t, generator)
    values, growth = torch.zeros(len(x_t), dtype=torch.float64), 0.0
    for _ in range(num_iterations):
        _, image = directional(at_time, x_t, u)
        _, back = pullback(at_time, x_t, unit_rows(image))
        u = unit_rows(back)
        before = values
        values = torch.where(norms(image).isfinite(), norms(back), torch.nan).cpu()
        growth = float(((values - before) / values.clamp(min=torch.finfo(torch.float64).tiny)).max())
        if growth < TOLERANCE:
            break
    return values, growth if growth == growth else 0.0
