"""Theorem 3 of arXiv:2606.30705 as measured curves: latents within reach of a flip, and tokens that do flip.

With s(t) = sigma_t / alpha_t, the noise of a state in units of the data, the theorem predicts flips at the rate of the
tube mass T(c s) = share of points whose boundary is no farther than c s, with one constant c. Legend: B examples,
P positions, L tokens, V vocabulary, S noise scales.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from fewstep.diagnostics.decoding import Decode, norms, random_directions, read_tokens, require_positions
from fewstep.diagnostics.result import Axes, Estimate, Result, Row, estimate_series, mean_of_all, resampled
from fewstep.paths import Path
from fewstep.shapes import expand_like, randn

GRID_SIZE = 128
"""Values of c tried in one pass of the fit."""


@torch.no_grad()
def tube(
    decode: Decode,
    denoise: Callable[[Tensor, Tensor], Tensor],
    path: Path,
    z: Tensor,
    positions: Tensor,
    times: Sequence[float],
    *,
    distances: Tensor,
    generator: torch.Generator,
) -> Result:
    """Flip rates of data latents ``z`` (B, ...) at ``positions`` (B, P) over ``times``, and the tube mass.

    ``decode`` gives logits (B, L, V), whose argmax is the token; ``denoise(x_t, t)`` with t (B,) float32 gives x1_hat
    of a model trained on ``path``; ``distances`` (B, P) are m / |grad m| there (:attr:`Margins.distance`). Curves over
    s: ``mass`` T(c s); ``flips`` phi, tokens of the posterior mean x1_hat that differ from the data's; ``isotropic``,
    those of z + s noise; ``matched``, those of z moved isotropically exactly as far as x1_hat lies from it. Rows:
    ``tube_c``, which minimises the squared distance of T from phi over the times, and ``tube_fit_error``, its root mean
    square; both are undetermined where every c fits alike. The same noise serves all times. Costs 3 S + 1 evaluations
    of ``decode`` and S of ``denoise``.
    """
    require_positions(z, positions)
    if not times or not all(0 < float(torch.tensor(time, dtype=torch.float32)) < 1 for time in times):
        raise ValueError(f"times are {list(times)}: expected at least one, all strictly between 0 and 1.")
    positions = positions.to(z.device)
    times = sorted((float(time) for time in times), reverse=True)
    scales = [_noise_scale(path, time) for time in times]
    tokens = read_tokens(decode, z, positions)
    # The length of the posterior mean's step depends on its noise: the isotropic one takes a direction of its own.
    noise, direction = randn(tuple(z.shape), z, generator).to(z.dtype), random_directions(z, generator)
    flips = torch.zeros(3, len(times), *positions.shape, dtype=torch.float64)
    for k, (time, s) in enumerate(zip(times, scales, strict=True)):
        t = torch.full((len(z),), time, dtype=torch.float32, device=z.device)
        x1_hat = denoise(path.sample(z, noise, t), t)
        matched = z + expand_like(norms(x1_hat - z), z).to(z.dtype) * direction
        for curve, moved in enumerate((x1_hat, z + s * noise, matched)):
            flips[curve, k] = (read_tokens(decode, moved, positions) != tokens).cpu()
    curves = [[mean_of_all(values, generator) for values in curve] for curve in flips]
    c, masses, error = _fit_with_interval(torch.tensor(scales).double(), flips[0], distances.double().cpu(), generator)
    note = f"{positions.numel()} points, {len(times)} times"
    if c.value is None:
        note += "; undetermined: no token flips, all do, or no boundary is known"
    label = "tube mass T(c s)" if c.value is None else f"tube mass T(c s), c = {c.value:.3g}"
    title, x_label = "Flips and the tube around the boundaries", "noise scale s = sigma / alpha"
    return Result(
        "tube",
        (Row("tube_c", c, note=note), Row("tube_fit_error", error, "share of points", "rms over the times")),
        {
            "mass": estimate_series(label, scales, masses),
            "flips": estimate_series("flips, posterior mean", scales, curves[0]),
            "isotropic": estimate_series("flips, isotropic noise", scales, curves[1]),
            "matched": estimate_series("flips, isotropic, same norm", scales, curves[2]),
        },
        Axes(title, x_label, "share of points", log_x=True),
        {"times": tuple(times), "num_points": positions.numel()},
    )


def _noise_scale(path: Path, time: float) -> float:
    t = torch.tensor([time], dtype=torch.float32).double()  # the time that the model is given
    return float(path.schedule.sigma(t) / path.schedule.alpha(t))


def _fit_with_interval(
    scales: Tensor, flips: Tensor, distances: Tensor, generator: torch.Generator
) -> tuple[Estimate, tuple[Estimate, ...], Estimate]:
    """c, T(c s) at ``scales`` (S,) and the error of fit, from ``flips`` (S, B, P) and ``distances`` (B, P)."""
    num_examples, num_positions = distances.shape
    phi = flips.flatten(1).mean(1)
    c = _fit(scales, phi, distances) if 0 < float(phi.mean()) < 1 else None
    if c is None:
        unknown = Estimate(None, None, num_examples)
        return unknown, (unknown,) * len(scales), unknown
    rows = torch.cat([flips.mean(2).T, distances], 1)  # an example: its flip rates and its distances

    def refit(resamples: Tensor) -> Tensor:
        again = (_fit(scales, rows[:, :-num_positions].mean(0), rows[:, -num_positions:]) for rows in resamples)
        return torch.tensor([c if value is None else value for value in again], dtype=torch.float64)

    # Resampling adds noise to what is left over, so it has no interval: it would lie above the value itself.
    mass = (distances[None] <= c * scales[:, None, None]).double().mean((1, 2))
    error = (mass - phi).square().mean().sqrt()
    masses = tuple(mean_of_all(distances <= c * s, generator) for s in scales)
    return resampled(c, rows, refit, generator), masses, Estimate(float(error), None, num_examples)


def _fit(scales: Tensor, phi: Tensor, distances: Tensor) -> float | None:
    """The c of least squared error of T(c s) against ``phi`` (S,), or None where no distance is finite and positive.

    T is a step function, so the error is constant between its jumps at distance / s: a logarithmic grid over all
    jumps, then finer ones around the best value so far, and of equals the middle one.
    """
    ordered = distances.flatten().sort().values
    reachable = ordered[(ordered > 0) & ordered.isfinite()]
    if not len(reachable):
        return None
    low = math.log(float(reachable[0] / scales.max())) - 1
    high = math.log(float(reachable[-1] / scales.min())) + 1
    for _ in range(3):
        grid = torch.linspace(low, high, GRID_SIZE, dtype=torch.float64)
        reach = grid.exp()[:, None] * scales
        mass = torch.searchsorted(ordered, reach, right=True).double() / len(ordered)
        errors = (mass - phi).square().sum(1)
        equals = (errors == errors.min()).nonzero()[:, 0]
        first = int(equals[0])
        run = int((equals - torch.arange(first, first + len(equals)) == 0).sum())
        last = first + run - 1
        low, high = float(grid[max(first - 1, 0)]), float(grid[min(last + 1, GRID_SIZE - 1)])
    return math.exp((float(grid[first]) + float(grid[last])) / 2)
