"""Few steps of the exact denoiser over a model's own latents, and how much of re-injection's gain is mere shrinkage.

A sample's tokens, as the parallel readout finds them likeliest, are compared with the tokens of the nearest latent
(Euclidean, over the whole block), read in the same way. Wrong: they differ. Distance: from sample to that latent.
B samples, N latents, K positions of D dimensions, L tokens.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property, partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
from scipy.optimize import brentq
from torch import Tensor

from fewstep.diagnostics.result import Picture, Series
from fewstep.errors import UserError
from fewstep.evaluation.adapters import decoder_of
from fewstep.evaluation.columns import markdown_table
from fewstep.evaluation.rows import Column, Row, Setting, Value
from fewstep.evaluation.sweep import Batch, Group, Measure, Plan, Samples, Statistic, model_digest
from fewstep.lab.theory.grammar import grammar_sentences
from fewstep.lab.theory.grammar_measure import GrammarJudge, block_texts, share_value
from fewstep.lab.theory.mixtures import Mixture
from fewstep.metrics.intervals import Interval, bootstrap_interval
from fewstep.model import SavedModel
from fewstep.paths import PATHS
from fewstep.samplers import FlowSampler
from fewstep.shapes import example_generators, randn

if TYPE_CHECKING:
    from datasets import Dataset

TEMPERATURES = (1.0, 0.95, 0.9, 0.85, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3)
"""Temperatures between which a match is looked for, from the path's law down."""
SPREADS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0)
"""The same for levels of added noise."""
TOLERANCE = 0.005
"""Relative difference of mean distances that passes for equal."""
OTHER_NOISE = 2**20
"""Offset of the examples whose noise stands for the draws and the noise that controls add."""
NUM_RESAMPLES = 2000
COLUMNS = {
    "name": Column("samples"),
    "h": Column("h", "g"),
    "cap": Column("cap", "g"),
    "num_steps": Column("K", "d"),
    "reinjection": Column("gamma"),
    "matches": Column("as far as gamma"),
    "temperature": Column("T or level", ".3f"),
    "matched": Column("matched", lambda value: "yes" if value else "no"),
    "wrong": Column("wrong tokens", lambda value: f"{100 * value:.2f} %", interval=True),
    "distance": Column("distance", ".2f"),
    "rms": Column("rms", ".3f"),
    "valid": Column("valid", ".3f", interval=True),
    "texts": Column("texts", ".0f"),
    "latents": Column("latents", ".0f"),
}
CAPTION = (
    "Wrong tokens: share that differs from the tokens of the nearest latent, distance: to that latent; 95 % bootstrap "
    "intervals over samples; valid: share of texts that the grammar can write, where the source is one; texts and "
    "latents: how many distinct ones came out."
)
GAIN_HEADING = ("h", "K", "gamma", "control", "T or level", "wrong", "control's", "remains")
GAIN_CAPTION = (
    "Wrong tokens of re-injection and of its control at equal distance, and the share of re-injection's gain over the "
    "deterministic flow that remains; 95 % bootstrap intervals over samples, paired."
)


@torch.no_grad()
def train_latents(bundle: SavedModel, ids: Tensor) -> Tensor:
    """Latents (N, K, D) of blocks ``ids`` (N, L) without padding. Raises ``UserError`` without an autoencoder."""
    bundle.require("autoencoder")
    assert bundle.autoencoder is not None
    device = next(bundle.autoencoder.parameters()).device
    parts = (part.to(device) for part in ids.split(256))
    return torch.cat([bundle.autoencoder.encode(part, torch.ones_like(part, dtype=torch.bool)).z for part in parts])


def train_blocks(train: "Dataset", count: int) -> Tensor:
    """``count`` blocks (N, L) int64 without padding, spread evenly over a packed split.

    Raises ``UserError`` where the split has fewer.
    """
    rows = train[:]
    ids, length = torch.as_tensor(rows["input_ids"]).long(), torch.as_tensor(rows["length"])
    full = ids[length == ids.shape[1]]
    if not 1 <= count <= len(full):
        raise UserError(f"{count} latents asked for: expected 1 to {len(full)}, the train blocks without padding")
    return full[(torch.arange(count) * len(full)) // count]


def exact_flow(bundle: SavedModel, latents: Tensor, h: float, cap: float | None = None) -> Mixture:
    """The exact denoiser of ``latents`` (N, K, D) on the path that the model was trained on; it needs no denoiser."""
    return Mixture(PATHS[bundle.identity.path](), latents, h, cap=cap)


@dataclass(frozen=True)
class ExactStudy:
    """What is sampled: ``steps`` and ``reinjections`` for each of ``widths``; ``matched_steps`` get the controls.

    ``caps`` are tried at width 0 and ``cap_steps``, deterministic, on ``cap_samples`` of the ``num_samples``. Sample i
    starts from the same x_0 in every row, equal steps, Euler. Controls, at which samples lie as far from the data as
    others do: "cooled", the deterministic flow with its noise times a temperature in every state, as far as those of
    strength ``matches``; "spread", re-injected samples with noise of a level added, as far as deterministic ones.
    """

    bundle: SavedModel
    latents: Tensor
    num_samples: int = 256
    cap_samples: int = 64
    seed: int = 0
    widths: tuple[float, ...] = (0.0, 0.7)
    steps: tuple[int, ...] = (1, 2, 4, 8, 32)
    reinjections: tuple[float, ...] = (0.0, 0.5, 1.0)
    matched_steps: tuple[int, ...] = (4, 8)
    caps: tuple[float, ...] = (2.0, 8.0, 32.0, 128.0, 512.0)
    cap_steps: tuple[int, ...] = (2, 4, 16)

    def plan(self, provenance: dict[str, Any] | None = None) -> Plan:
        """The sweep. Raises ``UserError`` for a model without a readout."""
        self.bundle.require("autoencoder", "readout")
        groups = [
            Group((setting,), self._make, num_samples=min(self.cap_samples, self.num_samples) if caps else None)
            for caps, settings in ((False, self._settings()), (True, self._capped()))
            for setting in settings
        ]
        measures = [Measure(self._values, self._take, {"distance": "to the nearest latent"}, CAPTION)]
        protocol = {"latents": len(self.latents), "caps": min(self.cap_samples, self.num_samples)}
        return Plan(
            groups,
            measures,
            protocol,
            self.num_samples,
            (self.seed,),
            model_digest(self.bundle),
            batch_size=self.num_samples,  # a match is over all samples
            device=str(self.latents.device),
            num_resamples=NUM_RESAMPLES,
            keep=("wrong",),
            provenance=provenance,
        )

    def _settings(self) -> Iterator[Setting]:
        for h in self.widths:
            yield {"name": "draws", "h": h}
            for count in self.steps:
                strengths = [gamma for gamma in self.reinjections if count > 1 or gamma == 0]  # one step takes none
                for gamma in strengths:
                    yield flow_setting(h, count, gamma)
                for gamma in strengths if h > 0 and count in self.matched_steps and 0.0 in strengths else ():
                    if gamma > 0:
                        yield {**flow_setting(h, count, 0.0), "name": "cooled", "matches": f"{gamma:g}"}
                        yield {**flow_setting(h, count, gamma), "name": "spread", "matches": "0"}

    def _capped(self) -> Iterator[Setting]:
        for cap in self.caps:
            for count in self.cap_steps:
                yield {**flow_setting(0.0, count, 0.0), "cap": cap}

    def _make(self, batch: Batch, settings: Sequence[Setting]) -> list[Samples]:
        return [self.make(setting, batch.count) for setting in settings]

    def make(self, setting: Setting, count: int) -> Samples:
        """The first ``count`` samples, as ``x_1`` (B, K, D); of a control with its ``temperature`` and ``matched``."""
        matches = setting.get("matches")
        if setting["name"] == "draws":
            (source,) = example_generators(self.seed, OTHER_NOISE - 1, 1)
            picks = torch.randint(len(self.latents), (count,), generator=source).to(self.latents.device)
            return Samples({"x_1": self.latents[picks] + float(setting["h"]) * self._noise(0, count)})
        if matches is None:
            return Samples({"x_1": self.sample(setting, count)})
        target = self.distance(self.sample({**setting, "reinjection": matches}, count))
        if setting["name"] == "cooled":
            value, matched = match(partial(self.sample, setting, count), self.distance, target, TEMPERATURES)
            x_1 = self.sample(setting, count, value)
        else:
            plain, xi = self.sample(setting, count), self._noise(OTHER_NOISE, count)
            value, matched = match(lambda level: plain + level * xi, self.distance, target, SPREADS)
            x_1 = plain + value * xi
        return Samples({"x_1": x_1}, numbers={"temperature": value, "matched": float(matched)})

    @torch.no_grad()
    def sample(self, setting: Setting, count: int, temperature: float = 1.0) -> Tensor:
        """x_1 (B, K, D): ``temperature`` multiplies the old noise in every state."""
        cap = setting.get("cap")
        flow = exact_flow(self.bundle, self.latents, float(setting["h"]), None if cap is None else float(cap))
        sampler = FlowSampler(flow.path, reinjection=float(setting["reinjection"]), noise_temperature=temperature)
        generators = example_generators(self.seed, 0, count)
        x_0 = randn((count, *self.latents.shape[1:]), self.latents, generators)
        return sampler.sample(flow, x_0, num_steps=int(setting["num_steps"]), generator=generators).x_1

    @torch.no_grad()
    def read(self, z: Tensor) -> Tensor:
        """The likeliest tokens (B, L) int64 at latents (B, K, D)."""
        decode = decoder_of(self.bundle.reader())
        return torch.cat([decode(x).argmax(-1) for x in z.float().split(64)])

    def distance(self, x_1: Tensor) -> float:
        """Mean distance to the nearest latent."""
        return float(exact_flow(self.bundle, self.latents, 0.0).nearest(x_1)[0].mean())

    def _noise(self, first: int, count: int) -> Tensor:
        shape = (count, *self.latents.shape[1:])
        return randn(shape, self.latents, example_generators(self.seed, first, count))

    def _take(self, setting: Setting, batch: Batch, samples: Samples) -> dict[str, Tensor]:
        x_1 = samples.tensors["x_1"]
        distance, index = exact_flow(self.bundle, self.latents, 0.0).nearest(x_1)
        ids, nearest = self.read(x_1), self.read(self.latents[index])
        wrong = (ids != nearest).double().mean(1)
        taken = {"ids": ids, "index": index, "distance": distance, "wrong": wrong, "square": x_1.double().square()}
        return {name: value.cpu() for name, value in taken.items()}

    @cached_property
    def judge(self) -> GrammarJudge | None:
        """Of texts, where the model's source is a grammar."""
        source = self.bundle.identity.source
        return None if grammar_sentences(source) is None else GrammarJudge(source)

    def _values(self, setting: Setting, samples: Samples) -> Mapping[str, Value | Statistic]:
        got, valid = samples.tensors, {}
        if self.judge is not None:
            judged = self.judge.judge(block_texts(self.bundle.tokenizer, got["ids"]))
            valid = {"valid": share_value(judged.valid)}
        return {
            **valid,
            "wrong": Statistic(got["wrong"][:, None]),
            "distance": Statistic(got["distance"][:, None]),
            "rms": Value(float(got["square"].mean().sqrt())),
            "texts": Value(float(len(got["ids"].unique(dim=0)))),
            "latents": Value(float(len(got["index"].unique()))),
        }


def flow_setting(h: float, num_steps: int, reinjection: float) -> dict[str, str | int | float]:
    """The setting of samples of the exact flow."""
    return {"name": "flow", "h": h, "num_steps": num_steps, "reinjection": f"{reinjection:g}"}


def match(
    samples: Callable[[float], Tensor], distance: Callable[[Tensor], float], target: float, ladder: Sequence[float]
) -> tuple[float, bool]:
    """The first number on the way along ``ladder`` at which the mean distance of ``samples`` is ``target``.

    The rung pair that it lies between is looked for first, since the distance need not be monotone. Returns the number
    and whether the distance is right to 0.5 %: it is not where no pair brackets ``target`` (then the closest rung is
    returned) or where the distance jumps over it.
    """
    excess = cache(lambda number: distance(samples(number)) - target)
    for near, far in pairwise(ladder):
        if excess(near) * excess(far) <= 0:
            collected = float(brentq(excess, near, far, xtol=1e-4, maxiter=30))
            return collected, abs(excess(collected)) <= TOLERANCE * target
    return min(ladder, key=lambda number: abs(excess(number))), False


@dataclass(frozen=True)
class Gain:
    """What ``control`` leaves of re-injection's ``gain``, the wrong tokens of ``plain`` minus those of ``own``.

    ``remaining``: the part that is left where samples lie equally far from the data: for "cooled" the control's wrong
    tokens minus the re-injected ones, for "spread" the deterministic flow's minus the control's. ``share`` is remaining
    over gain, None where the gain's interval holds 0 and where the control's distance did not match.
    """

    control: Row
    plain: Row
    own: Row

    @property
    def share(self) -> tuple[float, Interval] | None:
        """Remaining over gain, with its interval; samples are paired."""
        wrong = torch.tensor([each.per_sample["wrong"] for each in (self.plain, self.own, self.control)]).double()
        plain, own, control = wrong[..., 0]
        left = plain - control if self.control.setting["name"] == "spread" else control - own
        table = torch.stack([plain - own, left], -1)

        def interval(statistic: Callable[[Tensor], Tensor]) -> Interval:
            return bootstrap_interval(table, statistic, NUM_RESAMPLES, torch.Generator().manual_seed(0), batched=True)

        def remaining(rows: Tensor) -> Tensor:
            gain, rest = rows.mean(-2).unbind(-1)
            return rest / gain

        if not self.control.value("matched") or interval(lambda rows: rows[..., 0].mean(-1)).low <= 0:
            return None
        return float(remaining(table)), interval(remaining)

    def cells(self) -> tuple[str, ...]:
        """A line of the table of gains."""
        setting, share = self.control.setting, self.share
        shown = "undetermined" if self.control.value("matched") else "not matched"
        if share is not None:
            shown = f"{share[0]:.0%} ({share[1].low:.0%} - {share[1].high:.0%})"
        wrong = (COLUMNS["wrong"].written(each.value("wrong")) for each in (self.own, self.control))
        level = COLUMNS["temperature"].written(self.control.value("temperature"))
        strength = str(self.own.setting["reinjection"])
        return f"{setting['h']:g}", str(setting["num_steps"]), strength, str(setting["name"]), level, *wrong, shown


def gains(rows: Sequence[Row]) -> list[Gain]:
    """One for each control whose deterministic and re-injected rows are there too."""
    flows = {tuple(row.setting[axis] for axis in ("h", "num_steps", "reinjection")): row for row in _flows(rows)}
    collected = []
    for row in rows:
        setting = row.setting
        if "matches" in setting:
            strength = setting["matches" if setting["name"] == "cooled" else "reinjection"]
            pair = [flows.get((setting["h"], setting["num_steps"], gamma)) for gamma in ("0", strength)]
            if pair[0] is not None and pair[1] is not None:
                collected.append(Gain(row, pair[0], pair[1]))
    return collected


def gains_markdown(rows: Sequence[Row]) -> str:
    """The table of gains; "" without a control."""
    collected = gains(rows)
    return markdown_table([GAIN_HEADING, *(gain.cells() for gain in collected)], GAIN_CAPTION) if collected else ""


def _flows(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if row.setting["name"] == "flow" and "cap" not in row.setting]


def exact_picture(rows: Sequence[Row]) -> Picture | None:
    """Shares of wrong tokens over K with their intervals, for the largest width h; None where no row has steps.

    One line a strength of re-injection, one for the cooled control of strength 1, and the level of draws of the blurred
    law, which endless steps of a consistent sampler reach.
    """
    flows = _flows(rows)
    if not flows:
        return None
    h = max(float(row.setting["h"]) for row in flows)
    wide = [row for row in rows if row.setting["h"] == h and "cap" not in row.setting]
    lines = []
    for gamma in dict.fromkeys(row.setting["reinjection"] for row in flows):
        label = "deterministic" if gamma == "0" else f"re-injection {gamma}"
        lines.append(_series(label, [row for row in _flows(wide) if row.setting["reinjection"] == gamma]))
    cooled = [row for row in wide if row.setting["name"] == "cooled" and row.setting["matches"] == "1"]
    if cooled := [row for row in cooled if row.value("matched")]:
        lines.append(_series("deterministic, colder", cooled))
    ends = (min(lines[0].x, default=1.0), max(lines[0].x, default=1.0))
    draws = [row.value("wrong") or 0.0 for row in wide if row.setting["name"] == "draws"]
    lines += [Series("draws of the law itself", ends, (level, level)) for level in draws]
    title = f"Exact denoiser over {flows[0].protocol['latents']:,} latents, h = {h:g}"
    return Picture(title, "steps K", "share of wrong tokens", tuple(lines), log_x=True, log_y=True)


def _series(label: str, rows: Sequence[Row]) -> Series:
    """A line over K; where none of the tokens was wrong there is no point, which a logarithmic axis could not show."""
    shown = sorted((row for row in rows if row.value("wrong")), key=lambda row: int(row.setting["num_steps"]))
    x = tuple(float(row.setting["num_steps"]) for row in shown)
    bounds = [row.values["wrong"].interval or Interval(0.0, 0.0) for row in shown]
    low, high = (
        tuple(max(each, 1e-4) for each in ends) for ends in ([b.low for b in bounds], [b.high for b in bounds])
    )
    return Series(label, x, tuple(row.values["wrong"].value or 0.0 for row in shown), low, high)
