"""DABI, the sharpness of a readout: this project's definition, after arXiv:2606.30705.

    DABI(r) = E[rho(z*, boundary direction, r)] / E_u[rho(z*, u, r)],   u uniform on the unit sphere of R^n
    DABI_0  = lim r->0 = n (n_b' F n_b) / tr F

B examples, P points an example, n numbers in one latent, F the Fisher information (or J'J) of the whole output.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from fewstep.diagnostics.boundary import BoundaryPoints
from fewstep.diagnostics.curves import estimate_series
from fewstep.diagnostics.derivatives import Decode
from fewstep.diagnostics.geometry import numbers_per_latent, random_directions
from fewstep.diagnostics.response import Response
from fewstep.diagnostics.results import (
    DiagnosticRow,
    Estimate,
    Picture,
    Series,
    mean_estimate,
    quantile_estimate,
    ratio_estimate,
)
from fewstep.shapes import expand_like

SOURCE = "this project's definition, after arXiv:2606.30705"
RADII = (0.001, 0.01, 0.1)
"""Radii c, in units of sqrt(n) rms(z): the length of a data latent."""


@dataclass(frozen=True)
class FisherTrace:
    """tr F at B points, split into ``along`` the direction, n_b'F n_b, and ``across`` it; (B,) float64 each.

    ``standard_error`` (B,) is that of ``across``: 0 where the trace is exact, infinite from a single probe.
    """

    along: Tensor
    across: Tensor
    standard_error: Tensor

    @property
    def total(self) -> Tensor:
        """tr F (B,)."""
        return self.along + self.across


def fisher_trace(
    decode: Decode,
    response: Response,
    z: Tensor,
    direction: Tensor,
    position: Tensor | None,
    *,
    num_probes: int | None,
    generator: torch.Generator,
) -> FisherTrace:
    """tr F at ``z`` (B, ...) by deflation: n_b'F n_b + tr(P F P), with P = I - n_b n_b' and n_b ``direction`` (B, ...).

    The second part is exact from all n basis vectors where ``num_probes`` is None. Otherwise it is the mean over that
    many random sign vectors (Hutchinson 1989): taken across the direction they cannot make n_b's share exceed 1, and
    their spread is small where F is nearly of rank one. Costs a forward-mode pass a probe and one more.
    Raises ValueError for fewer than 1 probe.
    """
    if num_probes is not None and num_probes < 1:
        raise ValueError(f"num_probes is {num_probes}: expected at least 1, or None for the exact trace.")
    along = response.local(decode, z, direction, position)
    n = numbers_per_latent(z)
    values = []
    for index in range(n if num_probes is None else num_probes):
        probe = _basis_vector(z, index) if num_probes is None else _signs(z, generator)
        overlap = (probe.double() * direction.double()).flatten(1).sum(1)
        probe = (probe.double() - expand_like(overlap, z) * direction.double()).to(z.dtype)
        values.append(response.local(decode, z, probe, position))
    drawn = torch.stack(values)
    if num_probes is None:
        return FisherTrace(along, drawn.sum(0), torch.zeros_like(along))
    spread = drawn.std(0) / math.sqrt(num_probes) if num_probes > 1 else torch.full_like(along, torch.inf)
    return FisherTrace(along, drawn.mean(0), spread)


@dataclass(frozen=True)
class DabiAtRadius:
    """DABI(r) at ``radius`` r = ``c`` sqrt(n) rms.

    ``value`` is the summed response along the direction over the summed mean response of the isotropic draws;
    ``median`` that of the points' own ratios.
    """

    c: float
    radius: float
    value: Estimate
    median: Estimate


@dataclass(frozen=True)
class Dabi:
    """DABI of ``num_points`` points of ``num_examples`` examples, with its intervals over the examples.

    ``dabi`` is the mean of DABI_0 over accepted points, ``dabi_fraction`` the same over n, in (0, 1]; ``pooled`` is n
    times the summed n_b'F n_b over the summed tr F; ``median`` that of DABI_0. A point where tr F is 0 has no DABI_0:
    ``num_determined`` counts the accepted points that have one. ``num_probes`` is None where the trace is exact.
    ``name`` is the first word of the rows. This project's definition, after arXiv:2606.30705.
    """

    name: str
    kind: Literal["normal", "segment", "worst"]
    at: Literal["boundary", "midpoint", "data"]
    scope: Literal["all", "one"]
    n: int
    num_examples: int
    num_points: int
    accepted: float
    num_determined: int
    num_probes: int | None
    num_isotropic: int
    dabi: Estimate
    dabi_fraction: Estimate
    pooled: Estimate
    median: Estimate
    at_radius: tuple[DabiAtRadius, ...]

    def rows(self) -> tuple[DiagnosticRow, ...]:
        """``dabi``, ``dabi_fraction``, ``dabi_pooled``, ``dabi_median``, ``dabi_at_0.001``, ... (with its own name)."""
        where = f"n = {self.n}, {self.kind} direction, {self.at} points, {self.accepted:.1%} accepted"
        if self.scope == "one":
            where += ", one position's response only"
        local = (
            DiagnosticRow(self.name, self.dabi, "", f"r -> 0; {where}"),
            DiagnosticRow(f"{self.name}_fraction", self.dabi_fraction, "", f"{self.name} / n, n = {self.n}"),
            DiagnosticRow(f"{self.name}_pooled", self.pooled, "", f"ratio of sums, n = {self.n}"),
            DiagnosticRow(f"{self.name}_median", self.median, "", f"over points, n = {self.n}"),
        )
        finite = (
            DiagnosticRow(f"{self.name}_at_{one.c:g}", one.value, "", f"r = {one.radius:.4g}, n = {self.n}")
            for one in self.at_radius
        )
        return (*local, *finite)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, fit for JSON."""
        return {"definition": SOURCE, **asdict(self)}

    def picture(self) -> Picture | None:
        """DABI over the radius, with its limit; None without a radius at which it is determined."""
        label = f"{self.kind} direction, {self.at} points"
        line = estimate_series(label, [one.c for one in self.at_radius], [one.value for one in self.at_radius])
        c = line.x
        if not c:
            return None
        lines = [line]
        if self.pooled.value is not None:
            lines.append(Series("limit r -> 0", c, (self.pooled.value,) * len(c)))
        lines.append(Series(f"n = {self.n}", c, (float(self.n),) * len(c)))
        return Picture(
            "Sharpness of the decoder", "radius c = r / (sqrt(n) rms)", "DABI(r)", tuple(lines), log_x=True, log_y=True
        )


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
) -> Dabi:
    """How much more a decoder responds along ``points.direction`` than in a random direction.

    ``rms`` is that of the data latents, whatever the points are; ``radii`` are values of c in r = c sqrt(n) rms, each
    costs 2 (1 + num_isotropic) P evaluations of ``decode``; no radii leave the local limit, (1 + num_probes) P
    forward-mode passes. From few probes DABI_0 errs upward (the mean of an inverse), by about its relative variance:
    little at a boundary, where F is nearly of rank one; ``pooled`` hardly does. This project's definition, after
    arXiv:2606.30705. Raises ValueError for ``rms`` or a radius that is not positive, no isotropic draw, or no probe.
    """
    if not rms > 0 or num_isotropic < 1 or not all(c > 0 for c in radii):
        raise ValueError(
            f"rms {rms}, radii {list(radii)}, {num_isotropic} isotropic draws: expected a positive rms, positive radii "
            "and at least 1 draw."
        )
    n = numbers_per_latent(points.z[:, 0])
    lengths = [c * math.sqrt(n) * rms for c in radii]
    along, total = _local_parts(decode, response, points, num_probes, generator)
    ahead, isotropic = _finite_parts(decode, response, points, lengths, num_isotropic, generator)
    accepted = points.accepted.cpu()
    determined = accepted & (total > 0)
    share = along / total.where(total > 0, 1.0)
    return Dabi(
        name=name,
        kind=points.kind,
        at=points.at,
        scope=response.scope,
        n=n,
        num_examples=len(accepted),
        num_points=accepted.numel(),
        accepted=float(accepted.double().mean()),
        num_determined=int(determined.sum()),
        num_probes=num_probes,
        num_isotropic=num_isotropic,
        dabi=mean_estimate(n * share, determined, generator),
        dabi_fraction=mean_estimate(share, determined, generator),
        pooled=ratio_estimate(n * along * determined, total * determined, generator),
        median=quantile_estimate(n * share, determined, 0.5, generator),
        at_radius=tuple(
            _at_radius(c, length, numerator, denominator, accepted, generator)
            for c, length, numerator, denominator in zip(radii, lengths, ahead, isotropic, strict=True)
        ),
    )


def _local_parts(
    decode: Decode, response: Response, points: BoundaryPoints, num_probes: int | None, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """n_b'F n_b and tr F, (B, P) each."""
    along, total = [], []
    for z, direction, position in points.columns():
        found = fisher_trace(decode, response, z, direction, position, num_probes=num_probes, generator=generator)
        along.append(found.along.cpu())
        total.append(found.total.cpu())
    return torch.stack(along, 1), torch.stack(total, 1)


def _finite_parts(
    decode: Decode,
    response: Response,
    points: BoundaryPoints,
    lengths: Sequence[float],
    num_isotropic: int,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """rho along the direction and its mean over isotropic draws, (number of radii, B, P) each.

    A draw serves all radii, so that they differ by the radius alone.
    """
    ahead = torch.zeros(len(lengths), *points.accepted.shape, dtype=torch.float64)
    isotropic = torch.zeros_like(ahead)
    for p, (z, direction, position) in enumerate(points.columns() if lengths else ()):
        for k, radius in enumerate(lengths):
            ahead[k, :, p] = response.finite(decode, z, direction, radius, position).cpu()
        for _ in range(num_isotropic):
            u = random_directions(z, generator)
            for k, radius in enumerate(lengths):
                isotropic[k, :, p] += response.finite(decode, z, u, radius, position).cpu() / num_isotropic
    return ahead, isotropic


def _at_radius(
    c: float, radius: float, ahead: Tensor, isotropic: Tensor, accepted: Tensor, generator: torch.Generator
) -> DabiAtRadius:
    ratios = ahead / isotropic.where(isotropic > 0, 1.0)
    return DabiAtRadius(
        c,
        radius,
        ratio_estimate(ahead * accepted, isotropic * accepted, generator),
        quantile_estimate(ratios, accepted & (isotropic > 0), 0.5, generator),
    )


def _basis_vector(like: Tensor, index: int) -> Tensor:
    vector = torch.zeros_like(like).flatten(1)
    vector[:, index] = 1
    return vector.reshape(like.shape)


def _signs(like: Tensor, generator: torch.Generator) -> Tensor:
    bits = torch.randint(2, tuple(like.shape), generator=generator, device=generator.device)
    return (2 * bits - 1).to(like)
