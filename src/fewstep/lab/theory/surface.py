"""Accuracy, depth and stiffness: what each of them buys, with an exact denoiser whose Jacobian is capped."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from fewstep.lab.theory.cells import Sampler, final_states
from fewstep.lab.theory.curves import Fit
from fewstep.lab.theory.mixtures import Mixture
from fewstep.lab.theory.modes import separation, sphere
from fewstep.metrics.intervals import Share, share_of
from fewstep.paths import Path

STEPS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
CAPS = tuple(2.0 ** (k / 2) for k in range(0, 17))
LEVEL = 0.1
"""The iso-accuracy line whose caps are listed as fits."""


@dataclass(frozen=True)
class Panel:
    """One sampler's ``errors``, a share for each number of steps (rows) and each cap (columns)."""

    label: str
    errors: tuple[tuple[Share, ...], ...]


@dataclass(frozen=True)
class Surface:
    """Share of samples that end between modes, over numbers of ``steps`` K and ``caps`` of the Jacobian."""

    name: str
    title: str
    steps: tuple[int, ...]
    caps: tuple[float, ...]
    panels: tuple[Panel, ...]

    @property
    def fits(self) -> tuple[Fit, ...]:
        """Of each sampler and K: the smallest cap from which on no more than :data:`LEVEL` of the samples fail."""
        fits = []
        for panel in self.panels:
            for steps, row in zip(self.steps, panel.errors, strict=True):
                failing = [cap for cap, share in zip(self.caps, row, strict=True) if share.value > LEVEL]
                enough = [cap for cap in self.caps if not failing or cap > failing[-1]]
                if enough:
                    fits.append(Fit(f"cap for errors of {LEVEL:g}, {panel.label}, K = {steps}", enough[0], None))
        return tuple(fits)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, fit for JSON."""
        return asdict(self)


def error_of(ends: Tensor, means: Tensor) -> Share:
    """Share of ``ends`` (N, n) that lie more than a quarter of the separation from each of ``means`` (M, n)."""
    return share_of(torch.cdist(ends, means).amin(1) > separation(means) / 4)


def surface(
    path: Path,
    samplers: Sequence[tuple[str, Sampler]],
    *,
    num: int,
    num_modes: int = 64,
    dimension: int = 16,
    generator: torch.Generator,
) -> Surface:
    """K x cap -> error for bare modes on a sphere, M of them in R^n, with each of the labelled ``samplers``.

    Every point has the same initial noise. The cap bounds |d clean / dx| at every state (:class:`Mixture`).
    """
    means = sphere(num_modes, dimension, generator)
    seed = int(torch.randint(2**31, (), generator=generator))
    panels = []
    for label, sampler in samplers:
        rows = []
        for steps in STEPS:
            same = [(Mixture(path, means, cap=cap), torch.Generator().manual_seed(seed)) for cap in CAPS]
            ends = (final_states(sampler, model, means, steps, num, noise) for model, noise in same)
            rows.append(tuple(error_of(states, means) for states in ends))
        panels.append(Panel(label, tuple(rows)))
    title = f"Samples between modes: {num_modes} modes in {dimension} dimensions"
    return Surface("surface", title, STEPS, CAPS, tuple(panels))
