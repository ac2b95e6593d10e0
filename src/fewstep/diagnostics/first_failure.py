"""How far a latent moves before its token changes: across the nearest boundary, and in random directions.

The cell of a token is the set of latents that are read as it. Along a line through a latent z with unit vector u,

    r(z, u) = min { r > 0 : the token at z + r u or at z - r u is not the token at z },

and the ratio of r in a random direction over r in the boundary direction (the normal of the margin) says how far the
cell is from a ball, where it is 1. A half-space at distance d has d along its normal and d / |cos(u, normal)| along u,
so a median ratio of about sqrt(n) / 0.67 in n numbers. After "decoder basin" measures; the definition is ours.

Legend: B examples, P positions, L tokens, M random directions, n numbers in one latent. ``decode`` gives logits
(B, L, V) for latents z (B, ...).
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from fewstep.diagnostics.decoding import Decode, random_directions, read_tokens, rms
from fewstep.diagnostics.margins import Margins
from fewstep.diagnostics.result import Axes, Estimate, Result, Row, estimate_series, mean_estimate, quantile_estimate
from fewstep.shapes import expand_like

RADII = tuple(0.001 * 2000 ** (step / 23) for step in range(24))
"""Radii of the search, in units of sqrt(n) rms: from a thousandth of a latent's length to twice that length."""


@torch.no_grad()
def first_failure(
    decode: Decode,
    z: Tensor,
    positions: Tensor,
    measured: Margins,
    *,
    radii: Sequence[float] = RADII,
    num_random: int = 4,
    num_bisections: int = 12,
    generator: torch.Generator,
) -> Result:
    """Medians of the first-failure radius at data ``z`` (B, ...), for the tokens at ``positions`` (B, P).

    Rows ``first_failure_boundary``: along the normals of ``measured``, the margins there, in rms(z);
    ``first_failure_random``: along ``num_random`` uniform directions per example, in rms(z); ``first_failure_ratio``:
    the latter over the former, draw by draw. ``radii`` of the search are in units of sqrt(n) rms(z). A token that has
    not changed at the last of them is censored: it counts with the last radius, and with a ratio of 0 where it is the
    normal that did not change it, so that a median is a lower bound; marked ">=" where the true one may be higher.
    Points with a zero gradient have no normal and are left out. Costs up to 2 (P + M) len(radii) + 2 P (1 + M)
    ``num_bisections`` evaluations of ``decode``.
    """
    n, unit, positions = z[0].numel(), rms(z), positions.to(z.device)
    lengths = [c * math.sqrt(n) * unit for c in radii]
    columns = [
        failure_radii(decode, z, positions[:, p : p + 1], normal, lengths, num_bisections)
        for p, normal in enumerate(measured.direction.unbind(1))
    ]
    drawn = [
        failure_radii(decode, z, positions, random_directions(z, generator), lengths, num_bisections)
        for _ in range(num_random)
    ]
    boundary, random = torch.cat(columns, 1).cpu(), torch.stack(drawn, -1).cpu().flatten(1)
    usable = (measured.gradient_norm > 0).cpu()
    beside, every = (values.repeat_interleave(num_random, 1) for values in (boundary, usable))  # (B, P M), as random
    last, num_points = lengths[-1], int(usable.sum())
    note = f"n = {n}, {num_points} data points" + (f", {num_random} draws" if num_random > 1 else "")
    rows = []
    for name, values, unknown, weights, rms_unit in (
        ("boundary", boundary.clamp(max=last) / unit, boundary.isinf(), usable, "rms"),
        ("random", random.clamp(max=last) / unit, random.isinf(), every, "rms"),
        ("ratio", random.clamp(max=last) / beside, random.isinf() | beside.isinf(), every, ""),  # 0: normal censored
    ):
        median, bound = censored_median(values, unknown, weights, generator)
        share = float((unknown & weights).sum()) / max(1, int(weights.sum()))
        limit = f"{'>=; ' if bound else ''}{share:.1%} censored at {last / unit:.4g} rms"
        rows.append(Row(f"first_failure_{name}", median, rms_unit, f"median; {limit}; {note}"))
    curves = {
        key: estimate_series(
            f"{key} direction", radii, [mean_estimate(reached <= length, weights, generator) for length in lengths]
        )
        for key, reached, weights in (("boundary", boundary, usable), ("random", random, every))
    }
    return Result(
        "first_failure",
        tuple(rows),
        curves,
        Axes("Tokens that change within a radius", "radius c = r / (sqrt(n) rms)", "share of points", log_x=True),
        {
            "n": n,
            "num_points": num_points,
            "num_left_out": usable.numel() - num_points,
            "num_random": num_random,
            "radii": tuple(map(float, radii)),
            "search_radius": last,
            "num_censored_boundary": int((boundary.isinf() & usable).sum()),
            "num_censored_random": int((random.isinf() & every).sum()),
        },
    )


@torch.no_grad()
def failure_radii(
    decode: Decode, z: Tensor, positions: Tensor, u: Tensor, lengths: Sequence[float], num_bisections: int
) -> Tensor:
    """r(z, u) for the tokens at ``positions`` (B, P): (B, P) float64, infinite where none of ``lengths`` changes it.

    ``z`` and unit vectors ``u`` are (B, ...). The rising ``lengths`` are tried in turn, and the step in which a token
    first changes is bisected; a cell that is left and entered again between two lengths is not seen.
    """
    before = read_tokens(decode, z, positions)

    def changed(radius: Tensor) -> Tensor:
        move = (expand_like(radius, u) * u).to(z.dtype)
        ahead, behind = (read_tokens(decode, place, positions) != before for place in (z + move, z - move))
        return ahead | behind

    low = torch.zeros(positions.shape, dtype=torch.float64, device=z.device)
    high = torch.full_like(low, torch.inf)
    for length in lengths:
        open_ends = high.isinf()
        if not bool(open_ends.any()):
            break
        new = open_ends & changed(low.new_full((len(z),), length))
        high = torch.where(new, length, high)
        low = torch.where(open_ends & ~new, length, low)
    for p in range(positions.shape[1]):
        for _ in range(num_bisections if bool(high[:, p].isfinite().any()) else 0):
            middle = torch.where(high[:, p].isfinite(), (low[:, p] + high[:, p]) / 2, 0.0)
            beyond = changed(middle)[:, p]  # never at radius 0, of a token that does not change
            high[:, p] = torch.where(beyond, middle, high[:, p])
            low[:, p] = torch.where(beyond, low[:, p], middle)
    return high


def censored_median(
    values: Tensor, censored: Tensor, weights: Tensor, generator: torch.Generator
) -> tuple[Estimate, bool]:
    """Median of ``values`` (N, Q) where ``weights`` (N, Q) is not 0, and whether it is only a lower bound.

    ``values`` are lower bounds where ``censored`` (N, Q) is true; the median is exact as long as all of those lie above
    it.
    """
    counted = weights != 0
    known = values[counted].sort().values
    bound = bool(len(known)) and bool((values[counted & censored] <= known[len(known) // 2]).any())
    return quantile_estimate(values, weights, 0.5, generator), bound
