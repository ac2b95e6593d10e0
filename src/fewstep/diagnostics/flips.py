"""Flip counts at data points: this project's definition, after arXiv:2606.30705. B examples, P positions.

At a boundary point any direction flips the token, so that a count there tells nothing; hence the data points.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from fewstep.diagnostics.curves import estimate_series
from fewstep.diagnostics.derivatives import Decode
from fewstep.diagnostics.geometry import numbers_per_latent, random_directions, rms
from fewstep.diagnostics.margins import Margins, margins
from fewstep.diagnostics.parts import read_tokens
from fewstep.diagnostics.results import NUM_RESAMPLES, DiagnosticRow, Estimate, Picture, mean_estimate
from fewstep.metrics import Interval, bootstrap_interval

FLIP_RADII = (0.05, 0.1, 0.2)


@dataclass(frozen=True)
class FlipRatio:
    """At ``radius`` r = ``c`` sqrt(n) rms: shares of points that flip along the normal and isotropically; their ratio.

    Where none of the ``num_draws`` isotropic draws (independent ones: the positions of an example share theirs) flips a
    token, the ratio is not infinite: ``ratio`` is then the lower end of a one-sided 95 % interval for the points at
    hand, ``normal`` num_draws / 3 (rule of three), and ``is_lower_bound`` is true. In a resample of the interval
    without an isotropic flip that bound stands in as well, so that the interval's high end may be one.
    """

    c: float
    radius: float
    normal: Estimate
    isotropic: Estimate
    ratio: Estimate
    num_draws: int
    is_lower_bound: bool


@dataclass(frozen=True)
class DabiFlip:
    """``dabi_flip`` at each radius, for ``num_points`` points of ``num_examples`` examples.

    ``num_left_out`` more points have a zero gradient, and so no normal to move along. This project's definition, after
    arXiv:2606.30705.
    """

    n: int
    num_examples: int
    num_points: int
    num_left_out: int
    at_radius: tuple[FlipRatio, ...]

    @property
    def name(self) -> str:
        """Its name."""
        return "dabi_flip"

    def rows(self) -> tuple[DiagnosticRow, ...]:
        """``dabi_flip_at_0.1`` and so on; a lower bound carries ">=" in its note."""
        return tuple(DiagnosticRow(f"dabi_flip_at_{one.c:g}", one.ratio, "", self._note(one)) for one in self.at_radius)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, fit for JSON."""
        return asdict(self)

    def picture(self) -> Picture | None:
        """Share of flipped tokens over the radius, along the normal and isotropically."""
        radii = [one.c for one in self.at_radius]
        lines = [
            estimate_series("along the normal", radii, [one.normal for one in self.at_radius]),
            estimate_series("isotropic", radii, [one.isotropic for one in self.at_radius]),
        ]
        if not lines[0].x:
            return None
        return Picture("Flipped tokens", "radius c = r / (sqrt(n) rms)", "share of points", tuple(lines), log_x=True)

    def _note(self, one: FlipRatio) -> str:
        note = f"r = {one.radius:.4g}, n = {self.n}, {self.num_points} data points"
        if self.num_left_out:
            note += f", {self.num_left_out} with a zero gradient left out"
        return f">= (no flip in {one.num_draws} isotropic draws); {note}" if one.is_lower_bound else note


def dabi_flip(
    decode: Decode,
    z: Tensor,
    positions: Tensor,
    *,
    radii: Sequence[float] = FLIP_RADII,
    num_isotropic: int = 12,
    generator: torch.Generator,
    measured: Margins | None = None,
) -> DabiFlip:
    """Share of data points whose token flips when moved r along the normal, over the share moved r isotropically.

    ``z`` (B, ...) are data latents, ``positions`` (B, P) the tokens looked at, ``decode`` gives logits (B, L, V). The
    move along the normal is towards the runner-up; ``num_isotropic`` draws a point serve all radii c, in r = c sqrt(n)
    rms(z). ``measured``, where given, are the margins of these points. This project's definition, after
    arXiv:2606.30705. Raises ValueError for a radius that is not positive, no draw, or positions that do not fit.
    """
    if num_isotropic < 1 or not radii or not all(c > 0 for c in radii):
        raise ValueError(
            f"radii {list(radii)}, {num_isotropic} isotropic draws: expected at least one positive radius and one draw."
        )
    measured = margins(decode, z, positions) if measured is None else measured
    n = numbers_per_latent(z)
    lengths = [c * math.sqrt(n) * rms(z) for c in radii]
    usable = (measured.gradient_norm > 0).cpu()
    normal, isotropic = _flip_shares(decode, z, positions, measured.direction, lengths, num_isotropic, generator)
    return DabiFlip(
        n=n,
        num_examples=len(z),
        num_points=int(usable.sum()),
        num_left_out=int((~usable).sum()),
        at_radius=tuple(
            _flip_ratio(c, length, along, random, usable, num_isotropic, generator)
            for c, length, along, random in zip(radii, lengths, normal, isotropic, strict=True)
        ),
    )


@torch.no_grad()
def _flip_shares(
    decode: Decode,
    z: Tensor,
    positions: Tensor,
    normals: Tensor,
    lengths: Sequence[float],
    num_isotropic: int,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """Whether each point flips along its normal, and how often isotropically; (number of radii, B, P) each, in [0, 1].

    One isotropic displacement moves the whole latent, so a draw serves all positions of an example too.
    """
    positions = positions.to(z.device)
    tokens = read_tokens(decode, z)
    before = tokens.gather(1, positions)
    normal = torch.zeros(len(lengths), *positions.shape, dtype=torch.float64)
    isotropic = torch.zeros_like(normal)
    for k, radius in enumerate(lengths):
        for p, direction in enumerate(normals.unbind(1)):
            after = read_tokens(decode, z - radius * direction).gather(1, positions[:, p : p + 1])[:, 0]
            normal[k, :, p] = (after != before[:, p]).cpu()
    for _ in range(num_isotropic):
        u = random_directions(z, generator)
        for k, radius in enumerate(lengths):
            isotropic[k] += (read_tokens(decode, z + radius * u).gather(1, positions) != before).cpu()
    return normal, isotropic / num_isotropic


def _flip_ratio(
    c: float,
    radius: float,
    normal: Tensor,
    isotropic: Tensor,
    usable: Tensor,
    num_isotropic: int,
    generator: torch.Generator,
) -> FlipRatio:
    counts = torch.stack([(normal * usable).sum(1), (isotropic * usable).sum(1), usable.double().sum(1)], 1)
    counts = counts[counts[:, 2] > 0]

    def ratio(rows: Tensor) -> float:
        along, random, points = rows.sum(0).tolist()
        return along / random if random > 0 else along / points * (len(rows) * num_isotropic / 3)

    along, random = counts[:, :2].sum(0).tolist() if len(counts) else (0.0, 0.0)
    known = along > 0 or random > 0
    interval: Interval | None = bootstrap_interval(counts, ratio, NUM_RESAMPLES, generator) if known else None
    return FlipRatio(
        c=c,
        radius=radius,
        normal=mean_estimate(normal, usable, generator),
        isotropic=mean_estimate(isotropic, usable, generator),
        ratio=Estimate(ratio(counts) if known else None, interval, len(counts)),
        num_draws=len(counts) * num_isotropic,
        is_lower_bound=known and random == 0,
    )
