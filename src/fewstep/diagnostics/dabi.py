"""DABI, the sharpness of a readout (after arXiv:2606.30705; the formula is ours, see docs/reference/diagnostics.md).

    DABI(r) = E[rho(z*, n_b, r)] / E_u[rho(z*, u, r)],   u uniform on the unit sphere of R^n
    DABI_0  = lim r->0 = n (n_b' F n_b) / tr F,          DABI_0 <= n

Legend: z* a boundary point of B examples with P points each, n_b the unit direction that crosses the boundary there,
rho the response of the whole output (response.py), F its Fisher information (J'J for a continuous decoder), n numbers
in one latent.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from fewstep.diagnostics.boundary import BoundaryPoints
from fewstep.diagnostics.decoding import Decode, random_directions
from fewstep.diagnostics.response import Response
from fewstep.diagnostics.result import (
    Axes,
    Result,
    Row,
    Series,
    estimate_series,
    mean_estimate,
    quantile_estimate,
    ratio_estimate,
)
from fewstep.shapes import expand_like

SOURCE = "defined by fewstep, after arXiv:2606.30705"
RADII = (0.001, 0.01, 0.1)
"""Radii c, in units of sqrt(n) rms: the length of a data latent."""


def dabi(
    decode: Decode,
    response: Response,
    points: BoundaryPoints,
    *,
    rms: float,
    radii: Sequence[float] = RADII,
    num_isotropic: int = 12,
    num_probes: int | None = 8,
    generator: torch.Generator,
    name: str = "dabi",
) -> Result:
    """How much more a decoder responds along ``points.direction`` than in a random direction.

    Rows: ``NAME`` the mean of DABI_0 over accepted points, ``NAME_fraction`` that over n, ``NAME_pooled`` n times the
    summed n_b'F n_b over the summed tr F, ``NAME_median`` over points, and ``NAME_at_C`` DABI(r) at r = c sqrt(n) rms
    for c in ``radii``. ``rms`` is that of the data latents, whatever the points are. Points with tr F = 0 have no
    DABI_0. Costs 2 (1 + num_isotropic) P evaluations of ``decode`` per radius, and (1 + num_probes) P forward-mode
    passes. From few probes DABI_0 errs upward (the mean of an inverse), by about the relative variance of the trace;
    ``NAME_pooled`` hardly does.
    """
    if not rms > 0 or num_isotropic < 1 or not all(c > 0 for c in radii):
        raise ValueError(
            f"rms {rms}, radii {list(radii)}, {num_isotropic} isotropic draws: expected a positive rms, positive radii "
            "and at least 1 draw."
        )
    n = points.z[0, 0].numel()
    lengths = [c * math.sqrt(n) * rms for c in radii]
    parts = [
        fisher_trace(decode, response, *column, num_probes=num_probes, generator=generator)
        for column in points.columns()
    ]
    along, across = (torch.stack(column, 1).cpu() for column in zip(*parts, strict=True))
    total = along + across
    ahead, isotropic = _finite_parts(decode, response, points, lengths, num_isotropic, generator)
    accepted = points.accepted.cpu()
    determined = accepted & (total > 0)
    share = along / total.where(total > 0, 1.0)
    where = f"n = {n}, {points.kind} direction, {points.at} points, {float(accepted.double().mean()):.1%} accepted"
    pooled = (n * along * determined, total * determined)
    rows = [
        Row(name, mean_estimate(n * share, determined, generator), "", f"r -> 0; {where}"),
        Row(f"{name}_fraction", mean_estimate(share, determined, generator), "", f"{name} / n, n = {n}"),
        Row(f"{name}_pooled", ratio_estimate(*pooled, generator), "", f"ratio of sums, n = {n}"),
        Row(f"{name}_median", quantile_estimate(n * share, determined, 0.5, generator), "", f"over points, n = {n}"),
    ]
    medians = []
    for c, length, over, under in zip(radii, lengths, ahead, isotropic, strict=True):
        ratio = ratio_estimate(over * accepted, under * accepted, generator)
        rows.append(Row(f"{name}_at_{c:g}", ratio, "", f"r = {length:.4g}, n = {n}"))
        ratios = over / under.where(under > 0, 1.0)
        medians.append(quantile_estimate(ratios, accepted & (under > 0), 0.5, generator))
    return Result(
        name,
        tuple(rows),
        _curves(f"{points.kind} direction, {points.at} points", radii, rows, n),
        Axes("Sharpness of the decoder", "radius c = r / (sqrt(n) rms)", "DABI(r)", log_x=True, log_y=True),
        {
            "definition": SOURCE,
            "kind": points.kind,
            "at": points.at,
            "n": n,
            "num_examples": len(accepted),
            "num_points": accepted.numel(),
            "accepted": float(accepted.double().mean()),
            "num_determined": int(determined.sum()),
            "num_probes": num_probes,
            "num_isotropic": num_isotropic,
            "radii": tuple(radii),
            "lengths": tuple(lengths),
            "medians_at_radii": tuple(medians),
        },
    )


def fisher_trace(
    decode: Decode,
    response: Response,
    z: Tensor,
    direction: Tensor,
    *,
    num_probes: int | None,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """n_b'F n_b, and tr(P F P) with P = I - n_b n_b', at ``z`` (B, ...) with n_b ``direction``: (B,) float64 each.

    Their sum is tr F. The second is exact from all n basis vectors where ``num_probes`` is None; otherwise it is the
    mean over that many random sign vectors (Hutchinson 1989) across n_b, so that the estimate respects DABI_0 <= n and
    spreads little where F is nearly of rank one. Costs a forward-mode pass per probe, and one more.
    """
    if num_probes is not None and num_probes < 1:
        raise ValueError(f"num_probes is {num_probes}: expected at least 1, or None for the exact trace.")
    along = response.local(decode, z, direction)
    values = []
    for index in range(z[0].numel() if num_probes is None else num_probes):
        if num_probes is None:
            probe = torch.zeros_like(z)
            probe.view(len(z), -1)[:, index] = 1
        else:
            bits = torch.randint(2, tuple(z.shape), generator=generator, device=generator.device)
            probe = (2 * bits - 1).to(z)
        overlap = (probe.double() * direction.double()).flatten(1).sum(1)
        probe = (probe.double() - expand_like(overlap, z) * direction.double()).to(z.dtype)
        values.append(response.local(decode, z, probe))
    across = torch.stack(values)
    return along, across.sum(0) if num_probes is None else across.mean(0)


def _finite_parts(
    decode: Decode,
    response: Response,
    points: BoundaryPoints,
    lengths: Sequence[float],
    num_isotropic: int,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """rho along the direction, and its mean over isotropic draws, (number of radii, B, P) each.

    The same draws serve all radii, so that radii differ by the radius alone.
    """
    ahead = torch.zeros(len(lengths), *points.accepted.shape, dtype=torch.float64)
    isotropic = torch.zeros_like(ahead)
    for p, (z, direction) in enumerate(points.columns() if lengths else ()):
        for k, radius in enumerate(lengths):
            ahead[k, :, p] = response.finite(decode, z, direction, radius).cpu()
        for _ in range(num_isotropic):
            u = random_directions(z, generator)
            for k, radius in enumerate(lengths):
                isotropic[k, :, p] += response.finite(decode, z, u, radius).cpu() / num_isotropic
    return ahead, isotropic


def _curves(label: str, radii: Sequence[float], rows: Sequence[Row], n: int) -> dict[str, Series]:
    """DABI over the radius, with its limit and its bound n; none where no radius is determined."""
    pooled, line = rows[2].estimate.value, estimate_series(label, radii, [row.estimate for row in rows[4:]])
    levels = {"limit": ("limit r -> 0", pooled), "bound": (f"n = {n}", float(n))}
    flat = {
        key: Series(text, line.x, (value,) * len(line.x)) for key, (text, value) in levels.items() if value is not None
    }
    return {"dabi": line, **flat} if line.x else {}
