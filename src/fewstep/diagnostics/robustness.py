"""How far latents may be off before tokens change. B examples, P positions, L tokens, n numbers in one latent."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from fewstep.diagnostics.curves import estimate_series
from fewstep.diagnostics.derivatives import Decode
from fewstep.diagnostics.geometry import numbers_per_latent, rms
from fewstep.diagnostics.margins import Margins, margins
from fewstep.diagnostics.parts import read_tokens
from fewstep.diagnostics.results import DiagnosticRow, Estimate, Picture, mean_estimate
from fewstep.shapes import randn

LEVELS = (0.0, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0, 1.5, 2.0)
"""Noise levels: standard deviation of the noise in each number, in units of the latents' rms."""


@dataclass(frozen=True)
class NoiseRobustness:
    """Token accuracy over the ``levels`` of a displacement, of an argmax readout; this project's definition.

    ``isotropic`` counts all ``num_tokens`` real tokens under z + level rms(z) noise. The others count the
    ``num_points`` real tokens that were looked at: ``isotropic_at_positions`` under that same noise, ``aligned`` moved
    as far as that noise is long, level sqrt(n) rms, but along the normal towards the runner-up, and
    ``aligned_one_number`` moved by level rms along it, as far as the noise moves a single number. A point with a zero
    gradient stays in place. The three are empty where no position was looked at.
    """

    n: int
    levels: tuple[float, ...]
    isotropic: tuple[Estimate, ...]
    isotropic_at_positions: tuple[Estimate, ...]
    aligned: tuple[Estimate, ...]
    aligned_one_number: tuple[Estimate, ...]
    num_tokens: int
    num_points: int

    @property
    def name(self) -> str:
        """Its name."""
        return "noise_robustness"

    def rows(self) -> tuple[DiagnosticRow, ...]:
        """``noise_accuracy_at_0.4`` and ``aligned_accuracy_at_0.4`` for each level."""
        curves = (
            ("noise", self.isotropic, f"{self.num_tokens} tokens, isotropic"),
            ("aligned", self.aligned, f"{self.num_points} tokens, as far along the normal, n = {self.n}"),
        )
        return tuple(
            DiagnosticRow(f"{kind}_accuracy_at_{level:g}", curve[index], "", note)
            for index, level in enumerate(self.levels)
            for kind, curve, note in curves
            if curve
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values, fit for JSON."""
        return asdict(self)

    def to_json(self) -> str:
        """Indented JSON."""
        return json.dumps(self.to_dict(), indent=2) + "\n"

    def picture(self) -> Picture | None:
        """Accuracy over the level, isotropic against along the normal; None without a real token."""
        curves = (
            ("isotropic, all tokens", self.isotropic),
            ("isotropic", self.isotropic_at_positions),
            ("along the normal, as far", self.aligned),
            ("along the normal, level rms", self.aligned_one_number),
        )
        lines = [estimate_series(label, self.levels, found) for label, found in curves if found]
        if not lines[0].x:
            return None
        shown = tuple(line for line in lines if line.x)
        return Picture("Token accuracy of displaced latents", "level (rms)", "token accuracy", shown)


@torch.no_grad()
def noise_robustness(
    decode: Decode,
    z: Tensor,
    ids: Tensor,
    mask: Tensor,
    positions: Tensor | None,
    *,
    levels: Sequence[float] = LEVELS,
    generator: torch.Generator,
    measured: Margins | None = None,
) -> NoiseRobustness:
    """Accuracy of argmax ``decode`` against ``ids`` (B, L), at real tokens (``mask``), for displaced latents ``z``.

    ``decode`` gives logits (B, L, V); ``positions`` (B, P) are the tokens to displace along their own normal,
    None for none. ``measured``, where given, are the margins there. A latent's noise is the same at every level but for
    its size, so that levels differ by the level alone. Costs 1 + 2P evaluations a level, and the margins. This
    project's definition. Raises ValueError for no level, a negative one, or shapes that do not fit.
    """
    if not levels or min(levels) < 0 or ids.shape != mask.shape or len(ids) != len(z):
        raise ValueError(
            f"levels {list(levels)}, ids {tuple(ids.shape)}, mask {tuple(mask.shape)}, {len(z)} latents: expected "
            "levels of at least 0, and ids and mask of equal shape with a row for each latent."
        )
    ids, mask = ids.to(z.device), mask.to(z.device)
    noise, unit = randn(tuple(z.shape), z, generator).to(z.dtype), rms(z)
    real = torch.zeros(0)
    if positions is not None:
        positions = positions.to(z.device)
        real = mask.gather(1, positions)
        measured = margins(decode, z, positions) if measured is None else measured
    columns: list[list[Estimate]] = [[], [], [], []]
    for level in levels:
        right = read_tokens(decode, z + level * unit * noise) == ids
        shares = [(right, mask)]
        if positions is not None and measured is not None:
            shares.append((right.gather(1, positions), real))
            for far in (math.sqrt(numbers_per_latent(z)), 1.0):
                moved = _right_along_normal(decode, z, ids, positions, measured, level * unit * far)
                shares.append((moved, real))
        for column, (hits, counted) in zip(columns, shares, strict=False):
            column.append(mean_estimate(hits, counted, generator))
    isotropic, at_positions, aligned, one_number = (tuple(column) for column in columns)
    return NoiseRobustness(
        n=numbers_per_latent(z),
        levels=tuple(float(level) for level in levels),
        isotropic=isotropic,
        isotropic_at_positions=at_positions,
        aligned=aligned,
        aligned_one_number=one_number,
        num_tokens=int(mask.sum()),
        num_points=int(real.sum()),
    )


def _right_along_normal(
    decode: Decode, z: Tensor, ids: Tensor, positions: Tensor, measured: Margins, distance: float
) -> Tensor:
    """Whether the token at each of ``positions`` is right (B, P) with the latent ``distance`` towards its runner-up."""
    right = []
    for direction, position in zip(measured.direction.unbind(1), positions.unbind(1), strict=True):
        guess = read_tokens(decode, z - distance * direction)
        right.append((guess == ids).gather(1, position[:, None])[:, 0])
    return torch.stack(right, 1)
