"""Sweeps over the trained models of a comparison: text under the plan of ``fewstep evaluate``, images by distance.

N samples of a setting, K steps.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fewstep.evaluation.rows import Setting, Value
from fewstep.evaluation.sweep import Batch, Group, Measure, Plan, Samples, Statistic, model_digest
from fewstep.evaluation.text_plan import TextStudy
from fewstep.evaluation.texts import FlowTexts, Sampling, flow_setting
from fewstep.lab.compare.runs import Kind, Run
from fewstep.lab.images.generator import ImageGenerator, images_of
from fewstep.lab.images.row import YARDSTICK
from fewstep.lab.images.sweep import BaseFlow, ImageSweep, relative_rms
from fewstep.metrics.intervals import mean_interval
from fewstep.model import SavedModel
from fewstep.samplers import FlowSampler, default_sampling, incompatibility
from fewstep.shapes import example_generators

MEASURES = ("scores", "repetition", "copies", "late_flips", "cci", "rms")


@dataclass(frozen=True)
class Models:
    """The trained models of ``runs``, sampled at every number of ``steps`` under every rule of ``rules``."""

    runs: Sequence[Run]
    steps: Sequence[int]
    rules: Sequence[str]
    kind: Kind
    device: str

    def load(self, folder: Path) -> SavedModel:
        """The model in ``folder``; the latest stays in memory."""
        return _load(folder, self.kind, self.device)

    def settings(self) -> Iterator[tuple[Run, int, str, str | None]]:
        """Run, K, rule, and why the model was not trained for that, or None; the settings of a model in a row."""
        for run in self.runs:
            model = self.load(run.model)
            for rule in self.rules:
                for count in (count for count in self.steps if run.answers is None or count in run.answers):
                    grid = model.identity.default_grid()
                    sampler = FlowSampler(model.flow().path, grid=grid, reinjection=rule)
                    yield run, count, rule, incompatibility(model.identity, sampler, count)

    def ruled_out(self) -> list[str]:
        """A sentence for each objective and reason."""
        found: dict[tuple[str, str], list[str]] = {}
        for run, count, rule, reason in self.settings():
            if reason is not None:
                found.setdefault((run.name, reason), []).append(f"K = {count} with gamma {rule}")
        return [f"{name}, {', '.join(where)}, is ruled out: {reason}." for (name, reason), where in found.items()]

    def cost(self, run: Run) -> dict[str, float | None]:
        """Forward passes per example, and wall time of the run's training with the rounds before it."""
        own = [each for each in self.runs if each.name == run.name]
        return {"passes": run.passes, "training_seconds": sum(each.seconds for each in own[: own.index(run) + 1])}


@lru_cache(maxsize=1)
def _load(folder: Path, kind: Kind, device: str) -> SavedModel:
    return SavedModel.from_pretrained(folder, kind=kind).to(device)


def text_plan(study: TextStudy, models: Models, readouts: Sequence[str], provenance: dict[str, Any]) -> Plan:
    """Real text and the other yardsticks, and every model at every setting; all readouts of the same latents."""
    groups = study.yardsticks()
    for run, count, rule, reason in models.settings():
        if reason is None:
            sampling = Sampling(count, rule)
            settings = tuple(flow_setting(sampling, readout, run.name) for readout in readouts)
            digest = model_digest(models.load(run.model))
            groups.append(Group(settings, partial(_make_texts, models, run, sampling, tuple(readouts)), digest))
    return study.plan(groups, MEASURES, keep=("perplexity",), provenance=provenance)


def _make_texts(
    models: Models, run: Run, sampling: Sampling, readouts: Sequence[str], batch: Batch, settings: Sequence[Setting]
) -> list[Samples]:
    texts = FlowTexts(models.load(run.model), sampling, readouts)
    cost = models.cost(run)
    return [replace(made, numbers={**made.numbers, **cost}) for made in texts.make(batch, settings)]


def image_plan(
    base: Path, models: Models, num_samples: int, seeds: Sequence[int], provenance: dict[str, Any], batch_size: int = 64
) -> Plan:
    """Train images against held-out ones, and every model at every setting against both and the flow in ``base``.

    Quality is the Frechet distance in the autoencoder's latents; a batch is a whole seed, of which there are few, so
    its interval is Student's over seeds.
    """
    teacher = SavedModel.from_pretrained(base, kind="images").to(models.device)
    own = default_sampling(teacher.identity, 1)
    flow = BaseFlow(teacher)
    reference = ImageSweep(
        teacher,
        (own.num_steps,),
        (own.reinjection,),
        num_samples=num_samples,
        seeds=seeds,
        base=flow,
        batch_size=batch_size,
    )

    def real(batch: Batch, settings: Sequence[Setting]) -> list[Samples]:
        images = images_of(teacher).train()
        (generator,) = example_generators(batch.seed, 0, 1)
        picked = images[torch.randperm(len(images), generator=generator)[: batch.count]]
        return [Samples({"images": reference.decoded(picked)})]

    def make(run: Run, count: int, rule: str, batch: Batch, settings: Sequence[Setting]) -> list[Samples]:
        generator = ImageGenerator(models.load(run.model))
        made = generator.generate(batch.count, count, batch.seed, reinjection=rule, batch_size=batch_size)
        return [Samples({"images": made.images}, made.seconds, {"nfe": made.nfe, **models.cost(run)})]

    def take(setting: Setting, batch: Batch, samples: Samples) -> dict[str, Tensor]:
        images = samples.tensors["images"]
        taken = {"distances": torch.tensor([reference.distances(images)], dtype=torch.float64)}
        if batch.seed_index == 0 and setting["name"] != YARDSTICK:
            expected = reference.of_base(flow)
            taken["off_flow"] = torch.tensor([relative_rms(images[: len(expected)], expected[: len(images)])])
        return taken

    def values(setting: Setting, samples: Samples) -> dict[str, Value | Statistic]:
        latents, pixels = samples.tensors["distances"].T.tolist()
        found: dict[str, Value | Statistic] = {
            "fd_latents": Value(sum(latents) / len(latents), mean_interval(latents), tuple(latents)),
            "fd_pixels": Value(sum(pixels) / len(pixels), mean_interval(pixels), tuple(pixels)),
        }
        if "off_flow" in samples.tensors:
            found["off_flow"] = Value(float(samples.tensors["off_flow"][0]))
        return found

    groups = [Group(({"name": YARDSTICK},), real, reference.autoencoder)]
    for run, count, rule, reason in models.settings():
        if reason is None:
            setting: Setting = {"name": run.name, "num_steps": count, "reinjection": rule}
            groups.append(Group((setting,), partial(make, run, count, rule), model_digest(models.load(run.model))))
    return Plan(
        groups,
        [Measure(values, take, reference.protocol)],
        {},
        num_samples,
        tuple(seeds),
        reference.autoencoder,
        batch_size=num_samples,
        device=models.device,
        provenance=provenance,
        caption=reference.caption(),
    )
