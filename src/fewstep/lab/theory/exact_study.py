"""Few steps of the exact denoiser over real latents, and how much of re-injection's gain is mere shrinkage.

A sample's tokens, as the parallel readout finds them likeliest, are compared with the tokens of the nearest latent
(Euclidean, over the whole block), read in the same way. Wrong: they differ. Distance: from sample to that latent.
This project's definition. B samples, N latents, K positions of D dimensions, L tokens.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from fewstep.lab.theory.exact import exact_flow
from fewstep.lab.theory.exact_rows import ExactRow, ExactSetting
from fewstep.model import SavedModel
from fewstep.samplers import FlowSampler
from fewstep.shapes import example_generators, randn

LADDER = (1.0, 0.95, 0.9, 0.85, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3)
"""Temperatures that are tried for a match, from the path's law down."""
SPREADS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0)
"""Levels of added noise that are tried for a match."""
TOLERANCE = 0.005
"""Relative difference of mean distances that passes for equal."""
STRANGER = 2**20
"""Offset of the examples whose noise stands for the draws and the noise that controls add."""


@dataclass(frozen=True)
class StudySettings:
    """What is sampled: ``steps`` and ``reinjections`` for each of ``widths``; ``matched_steps`` get the controls.

    ``caps`` are tried at width 0 and ``cap_steps``, deterministic, with both rules, on ``cap_samples`` of the
    ``num_samples``.
    """

    widths: tuple[float, ...] = (0.0, 0.7)
    steps: tuple[int, ...] = (1, 2, 4, 8, 32)
    reinjections: tuple[float, ...] = (0.0, 0.5, 1.0)
    matched_steps: tuple[int, ...] = (4, 8)
    caps: tuple[float, ...] = (2.0, 8.0, 32.0, 128.0, 512.0)
    cap_steps: tuple[int, ...] = (2, 4, 16)
    num_samples: int = 256
    cap_samples: int = 64
    seed: int = 0


class ExactStudy:
    """The samples of the exact denoiser of ``latents`` (N, K, D), read by the model's parallel readout.

    ``seed`` names the noise: sample i starts from the same x_0 in every row. ``provenance`` goes into every row. Raises
    ``UserError`` for a model without a readout.
    """

    def __init__(
        self,
        bundle: SavedModel,
        latents: Tensor,
        settings: StudySettings,
        model: str,
        provenance: dict[str, Any] | None = None,
    ) -> None:
        bundle.require("autoencoder", "readout")
        self.bundle = bundle
        self.latents = latents
        self.settings = settings
        self.model = model
        self.provenance = provenance
        self.nearest = exact_flow(bundle, latents, 0.0).nearest

    def rows(self, done: Sequence[ExactRow]) -> Iterator[ExactRow]:
        """Rows that are not among ``done``, one at a time: uncontrolled ones first, since the controls need them."""
        known = {row.key: row for row in done}
        for setting in self._plain():
            row = self._empty(setting)
            if row.key not in known:
                known[row.key] = self._measured(row, self.sample(setting, row.num_samples))
                yield known[row.key]
        for h in self.settings.widths:
            for num_steps in self.settings.matched_steps if h > 0 else ():
                for gamma in self.settings.reinjections:
                    if gamma > 0 and num_steps in self.settings.steps and 0.0 in self.settings.reinjections:
                        yield from self._controls(ExactSetting("flow", h, num_steps, gamma), known)

    def owns(self, row: ExactRow) -> bool:
        """Whether a row is of this study: its model, latents, numbers of samples and seed."""
        return row.key[1:] == self._empty(row.setting).key[1:]

    def _plain(self) -> Iterator[ExactSetting]:
        chosen = self.settings
        for h in chosen.widths:
            yield ExactSetting("draws", h)
            for num_steps in chosen.steps:
                for gamma in chosen.reinjections:
                    if num_steps > 1 or gamma == 0:  # the only step takes no noise over
                        yield ExactSetting("flow", h, num_steps, gamma)
        for cap in chosen.caps:
            for num_steps in chosen.cap_steps:
                yield ExactSetting("flow", 0.0, num_steps, 0.0, cap=cap, rule="point")
                yield ExactSetting("flow", 0.0, num_steps, 0.0, cap=cap, rule="everywhere")

    def _controls(self, setting: ExactSetting, known: dict[tuple[object, ...], ExactRow]) -> Iterator[ExactRow]:
        """For a re-injected setting: the deterministic flow as cold as it takes, and its own samples made as far."""
        plain = known[self._empty(replace(setting, reinjection=0.0)).key]
        own = known[self._empty(setting).key]
        count = self.settings.num_samples
        for control in ("noise", "initial"):
            row = self._empty(ExactSetting(control, setting.h, setting.num_steps, 0.0, matches=setting.reinjection))
            if row.key in known:
                continue

            def at(temperature: float, cold: ExactSetting = row.setting) -> Tensor:
                return self.sample(replace(cold, temperature=temperature), count)

            temperature, matched = match(at, self._distance, own.distance, LADDER)
            yield self._measured(replace(row, temperature=temperature, matched=matched), at(temperature))
        row = self._empty(ExactSetting("spread", setting.h, setting.num_steps, setting.reinjection, matches=0.0))
        if row.key not in known:
            x_1 = self.sample(setting, count)
            xi = randn(tuple(x_1.shape), x_1, example_generators(self.settings.seed, STRANGER, count))
            level, matched = match(lambda one: x_1 + one * xi, self._distance, plain.distance, SPREADS)
            yield self._measured(replace(row, temperature=level, matched=matched), x_1 + level * xi)

    @torch.no_grad()
    def sample(self, setting: ExactSetting, count: int) -> Tensor:
        """x_1 (B, K, D) of the first ``count`` samples: equal steps, Euler; or draws of the smoothed latents."""
        generators = example_generators(self.settings.seed, 0, count)
        x_0 = randn((count, *self.latents.shape[1:]), self.latents, generators)
        if setting.num_steps is None:
            (source,) = example_generators(self.settings.seed, STRANGER - 1, 1)
            picks = torch.randint(len(self.latents), (count,), generator=source)
            return self.latents[picks.to(self.latents.device)] + setting.h * x_0
        flow = exact_flow(self.bundle, self.latents, setting.h, setting.cap, setting.rule)
        heat = 1.0 if setting.temperature is None else setting.temperature
        sampler = FlowSampler(
            flow.path,
            reinjection=setting.reinjection,
            noise_temperature=heat if setting.kind == "noise" else 1.0,
            initial_temperature=heat if setting.kind == "initial" else 1.0,
        )
        return sampler.sample(flow, x_0, num_steps=setting.num_steps, generator=generators).x_1

    @torch.no_grad()
    def read(self, z: Tensor) -> Tensor:
        """The likeliest tokens (B, L) int64 at latents (B, K, D), on the CPU."""
        reader = self.bundle.reader()
        parts = z.float().split(64)
        return torch.cat(
            [reader.logits(one, torch.ones_like(one[..., 0], dtype=torch.bool)).argmax(-1) for one in parts]
        ).cpu()

    def _distance(self, x_1: Tensor) -> float:
        return float(self.nearest(x_1)[0].mean())

    def _empty(self, setting: ExactSetting) -> ExactRow:
        count = self.settings.cap_samples if setting.cap is not None else self.settings.num_samples
        return ExactRow(setting, self.model, len(self.latents), count, self.settings.seed, provenance=self.provenance)

    def _measured(self, row: ExactRow, x_1: Tensor) -> ExactRow:
        distance, index = self.nearest(x_1)
        ids, wanted = self.read(x_1), self.read(self.latents[index])
        return replace(
            row,
            wrong_shares=tuple((ids != wanted).double().mean(1).tolist()),
            distances=tuple(round(one, 5) for one in distance.tolist()),
            rms=float(x_1.double().square().mean().sqrt()),
            num_texts=len(ids.unique(dim=0)),
            num_latents_reached=len(index.unique()),
        )


def match(
    samples: Callable[[float], Tensor],
    distance: Callable[[Tensor], float],
    wanted: float,
    ladder: Sequence[float],
) -> tuple[float, bool]:
    """The first number on the way along ``ladder`` at which the mean distance of ``samples`` is ``wanted``.

    The rung pair that it lies between is found first, since the distance need not be monotone, then halved until the
    distance is right to 0.5 %, at most 12 times. Returns the number and true; or, where no pair brackets ``wanted``,
    the rung that comes closest and false; or, where the distance jumps over ``wanted``, a number next to the jump and
    false.
    """
    found: list[tuple[float, float]] = []
    for rung in ladder:
        found.append((rung, distance(samples(rung))))
        if len(found) > 1 and (found[-2][1] - wanted) * (found[-1][1] - wanted) <= 0:
            break
    else:
        return min(found, key=lambda one: abs(one[1] - wanted))[0], False
    (near, at_near), (far, _) = found[-2:]
    for _ in range(12):
        middle = (near + far) / 2
        value = distance(samples(middle))
        if abs(value - wanted) <= TOLERANCE * wanted:
            return middle, True
        if (at_near - wanted) * (value - wanted) <= 0:
            far = middle
        else:
            near, at_near = middle, value
    return middle, False
