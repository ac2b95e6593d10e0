"""Few steps of the exact denoiser over a model's own latents, and how much of re-injection's gain is mere shrinkage.

A sample's tokens, as the parallel readout finds them likeliest, are compared with the tokens of the nearest latent
(Euclidean, over the whole block), read in the same way. Wrong: they differ. Distance: from sample to that latent.
B samples, N latents, K positions of D dimensions, L tokens.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from itertools import pairwise, product
from typing import TYPE_CHECKING, Any

import torch
from scipy.optimize import brentq
from torch import Tensor

from fewstep.data.batches import spread_rows
from fewstep.diagnostics.result import Picture, Series
from fewstep.errors import UserError
from fewstep.evaluation.adapters import decoder_of
from fewstep.evaluation.charts import STEPS, row_series
from fewstep.evaluation.columns import markdown_table
from fewstep.evaluation.measures import LAWS
from fewstep.evaluation.rows import Column, Row, Setting, Value, key_of, table_lines
from fewstep.evaluation.sweep import Batch, Group, Measure, Plan, Samples, Statistic, model_digest
from fewstep.lab.theory.grammar_measure import GrammarJudge, block_texts, share_value
from fewstep.lab.theory.mixtures import Mixture
from fewstep.model import SavedModel
from fewstep.paths import PATHS
from fewstep.samplers import FlowSampler
from fewstep.shapes import example_generators, randn

if TYPE_CHECKING:
    from datasets import Dataset

LADDERS = {
    "cooled": (1.0, 0.95, 0.9, 0.85, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3),
    "spread": (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0),
}
"""Temperatures, and levels of added noise, between which a control's match is looked for."""
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
    "remains": Column("remains", ".0%", interval=True),
    "distance": Column("distance", ".2f"),
    "rms": Column("rms", ".3f"),
    "valid": Column("valid", ".3f", interval=True),
    "texts": Column("texts", ".0f"),
    "latents": Column("latents", ".0f"),
}
CAPTION = (
    "Wrong tokens: share that differs from the tokens of the nearest latent, distance: to that latent; 95 % bootstrap "
    "intervals over samples; valid: share of texts that the grammar can write, where the source is one; texts and "
    "latents: how many distinct ones came out. A control (temperature T, level of noise) lies as far from the data as "
    "samples of another gamma; remains: share of re-injection's gain over the deterministic flow that is left between "
    "samples of equal distance, paired; none where the gain's interval holds 0, or distances do not match."
)


@torch.no_grad()
def train_latents(bundle: SavedModel, ids: Tensor) -> Tensor:
    """Latents (N, K, D) of blocks ``ids`` (N, L) without padding."""
    encoder, parts = bundle.encoder(), (part.to(bundle.device) for part in ids.split(256))
    return torch.cat([encoder.encode(part, torch.ones_like(part, dtype=torch.bool)).z for part in parts])


def train_blocks(train: "Dataset", count: int) -> Tensor:
    """``count`` blocks (N, L) int64 without padding, spread evenly over a packed split.

    Raises ``UserError`` where the split has fewer.
    """
    rows = train[:]
    ids, length = torch.as_tensor(rows["input_ids"]).long(), torch.as_tensor(rows["length"])
    full = ids[length == ids.shape[1]]
    if not 1 <= count <= len(full):
        raise UserError(f"{count} latents asked for: expected 1 to {len(full)}, the train blocks without padding")
    return full[torch.from_numpy(spread_rows(len(full), count))]


@dataclass(frozen=True)
class ExactStudy:
    """What is sampled: ``steps`` and ``reinjections`` for each of ``widths``; ``matched_steps`` get the controls.

    ``caps`` are tried at width 0 and ``cap_steps``, deterministic, on ``cap_samples`` of the ``num_samples``. Sample i
    starts from the same x_0 in every row. Controls lie as far from the data as samples of strength ``matches``:
    "cooled", the deterministic flow with its noise times a temperature in every state; "spread", re-injected samples
    with noise of a level added.
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
        """The sweep."""

        def samples(batch: Batch, settings: Sequence[Setting]) -> list[Samples]:
            return [self.make(setting, batch.count) for setting in settings]

        fewer = min(self.cap_samples, self.num_samples)
        capped = [{**flow_setting(0.0, count, 0.0), "cap": cap} for cap, count in product(self.caps, self.cap_steps)]
        return Plan(
            groups=[
                *(Group((setting,), samples) for setting in self._settings()),
                *(Group((setting,), samples, num_samples=fewer) for setting in capped),
            ],
            measures=[Measure(self._values, self._take, {"distance": "to the nearest latent"}, CAPTION)],
            protocol={"latents": len(self.latents), "caps": fewer},
            num_samples=self.num_samples,
            seeds=(self.seed,),
            model=model_digest(self.bundle),
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
                yield from (flow_setting(h, count, gamma) for gamma in strengths)
                for gamma in strengths if h > 0 and count in self.matched_steps else ():
                    if gamma > 0:
                        yield {**flow_setting(h, count, 0.0), "name": "cooled", "matches": f"{gamma:g}"}
                        yield {**flow_setting(h, count, gamma), "name": "spread", "matches": "0"}

    def make(self, setting: Setting, count: int) -> Samples:
        """The first ``count`` samples, as ``x_1`` (B, K, D); of a control with its ``temperature`` and ``matched``."""
        matches = setting.get("matches")
        if setting["name"] == "draws":
            (source,) = example_generators(self.seed, OTHER_NOISE - 1, 1)
            picks = torch.randint(len(self.latents), (count,), generator=source).to(self.latents.device)
            return Samples({"x_1": self.latents[picks] + float(setting["h"]) * self._noise(0, count)})
        if matches is None:
            return Samples({"x_1": self.sample(setting, count)})
        name, plain, xi = str(setting["name"]), self.sample(setting, count), self._noise(OTHER_NOISE, count)

        def at(number: float) -> Tensor:
            return self.sample(setting, count, number) if name == "cooled" else plain + number * xi

        target = self.distance(self.sample({**setting, "reinjection": matches}, count))
        number, matched = match(lambda number: self.distance(at(number)), target, LADDERS[name])
        return Samples({"x_1": at(number)}, numbers={"temperature": number, "matched": float(matched)})

    def flow(self, h: float, cap: float | None = None) -> Mixture:
        """The exact denoiser of the latents on the path that the model was trained on; it needs no denoiser."""
        return Mixture(PATHS[self.bundle.identity.path](), self.latents, h, cap=cap)

    @torch.no_grad()
    def sample(self, setting: Setting, count: int, temperature: float = 1.0) -> Tensor:
        """x_1 (B, K, D): ``temperature`` multiplies the old noise in every state."""
        cap = setting.get("cap")
        flow = self.flow(float(setting["h"]), None if cap is None else float(cap))
        sampler = FlowSampler(flow.path, reinjection=float(setting["reinjection"]), noise_temperature=temperature)
        generators = example_generators(self.seed, 0, count)
        x_0 = randn((count, *self.latents.shape[1:]), self.latents, generators)
        return sampler.sample(flow, x_0, num_steps=int(setting["num_steps"]), generator=generators).x_1

    def distance(self, x_1: Tensor) -> float:
        """Mean distance to the nearest latent."""
        return float(self.flow(0.0).nearest(x_1)[0].mean())

    def _noise(self, first: int, count: int) -> Tensor:
        shape = (count, *self.latents.shape[1:])
        return randn(shape, self.latents, example_generators(self.seed, first, count))

    @torch.no_grad()
    def _take(self, setting: Setting, batch: Batch, samples: Samples) -> dict[str, Tensor]:
        x_1, decode = samples.tensors["x_1"], decoder_of(self.bundle.reader())
        distance, index = self.flow(0.0).nearest(x_1)
        ids, nearest = (
            torch.cat([decode(part).argmax(-1) for part in z.float().split(64)]) for z in (x_1, self.latents[index])
        )
        wrong = (ids != nearest).double().mean(1)
        taken = {"ids": ids, "index": index, "distance": distance, "wrong": wrong, "square": x_1.double().square()}
        return {name: value.cpu() for name, value in taken.items()}

    @cached_property
    def judge(self) -> GrammarJudge | None:
        """Of texts, where the model's source is a grammar."""
        source = self.bundle.identity.source
        return GrammarJudge(source) if source.partition(":")[0] in LAWS else None

    def _values(self, setting: Setting, samples: Samples) -> Mapping[str, Value | Statistic]:
        got, valid = samples.tensors, {}
        if self.judge is not None:
            judged = self.judge.judge(block_texts(self.bundle.tokenizer, got["ids"]))
            valid = {"valid": share_value(judged["valid"])}
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


def match(distance_at: Callable[[float], float], target: float, ladder: Sequence[float]) -> tuple[float, bool]:
    """The first number on the way along ``ladder`` at which the distance is ``target``.

    The distance need not be monotone. Returns the number and whether the distance is right to 0.5 %: it is not where no
    pair of rungs brackets ``target`` (then the closest rung is returned) or where the distance jumps over it.
    """
    excess = cache(lambda number: distance_at(number) - target)
    for near, far in pairwise(ladder):
        if excess(near) * excess(far) <= 0:
            collected = float(brentq(excess, near, far, xtol=1e-4, maxiter=30))
            return collected, abs(excess(collected)) <= TOLERANCE * target
    return min(ladder, key=lambda number: abs(excess(number))), False


def with_gains(rows: Sequence[Row]) -> list[Row]:
    """The rows, the controls with the share of re-injection's gain that ``remains``.

    Gain: the wrong tokens of the deterministic flow minus the re-injected ones. What remains of it where samples lie
    equally far from the data is for "cooled" the control's wrong tokens minus the re-injected ones, for "spread" the
    deterministic flow's minus the control's. Samples are paired.
    """
    wrong = {row.key: torch.tensor(row.per_sample["wrong"], dtype=torch.float64)[:, 0] for row in rows}
    collected = []
    for row in rows:
        setting, cooled = row.setting, row.setting["name"] == "cooled"
        if "matches" in setting and row.value("matched"):
            flow = {"name": "flow", "h": setting["h"], "num_steps": setting["num_steps"]}
            strength = setting["matches" if cooled else "reinjection"]
            plain, own = (wrong[key_of({**flow, "reinjection": gamma})] for gamma in ("0", strength))
            left = wrong[row.key] - own if cooled else plain - wrong[row.key]
            sure = Statistic((plain - own)[:, None]).value(1, NUM_RESAMPLES).interval
            if sure is not None and sure.low > 0:
                share = Statistic(torch.stack([left, plain - own], 1), _ratio).value(1, NUM_RESAMPLES)
                row = replace(row, values={**row.values, "remains": share})
        collected.append(row)
    return collected


def _ratio(rows: Tensor) -> Tensor:
    left, gain = rows.mean(-2).unbind(-1)
    return left / gain


def exact_table(rows: Sequence[Row]) -> str:
    """All rows and what remains of gains, in Markdown."""
    return markdown_table(table_lines(with_gains(rows), COLUMNS), CAPTION)


def exact_picture(rows: Sequence[Row]) -> Picture:
    """Shares of wrong tokens over K with their intervals, for the largest width h.

    One line a strength of re-injection, one for the cooled control of strength 1, and the level of draws of the blurred
    law, which endless steps of a consistent sampler reach. No point where no token was wrong: the axis is logarithmic.
    """
    h = max(float(row.setting["h"]) for row in rows)
    lines: dict[str, list[Row]] = {}
    for row in sorted(rows, key=lambda row: int(row.setting.get("num_steps", 0))):
        setting, label = row.setting, ""
        if setting["name"] == "flow" and "cap" not in setting:
            label = "deterministic" if setting["reinjection"] == "0" else f"re-injection {setting['reinjection']}"
        elif setting["name"] == "cooled" and setting["matches"] == "1" and row.value("matched"):
            label = "deterministic, colder"
        if label and setting["h"] == h and row.value("wrong"):
            lines.setdefault(label, []).append(row)
    series = [row_series(label, line, STEPS, "wrong") for label, line in lines.items()]
    places = [x for line in series for x in line.x] or [1.0]
    draws = next(row.value("wrong") or 0.0 for row in rows if row.setting == {"name": "draws", "h": h})
    series.append(Series("draws of the law itself", (min(places), max(places)), (draws, draws)))
    title = f"Exact denoiser over {rows[0].protocol['latents']:,} latents, h = {h:g}"
    return Picture(title, "steps K", "share of wrong tokens", tuple(series), log_x=True, log_y=True)
