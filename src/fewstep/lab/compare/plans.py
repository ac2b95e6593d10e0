"""Sweeps over the trained models of a comparison: text under the plan of ``fewstep evaluate``, images by distance.

N samples of a setting, K steps.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import Any

from fewstep.evaluation.matched import KEPT
from fewstep.evaluation.rows import Setting
from fewstep.evaluation.sweep import Batch, Group, Plan, Samples, model_digest
from fewstep.evaluation.text_plan import TextStudy
from fewstep.evaluation.texts import FlowTexts, Sampling, flow_settings
from fewstep.lab.compare.runs import Kind, Run
from fewstep.lab.images.study import ImageStudy, generated
from fewstep.model import SavedModel
from fewstep.samplers import FlowSampler, incompatibility

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

    @cached_property
    def digests(self) -> dict[Path, str]:
        """Digest of each model by its folder."""
        return {run.model: model_digest(self.load(run.model)) for run in self.runs}

    @cached_property
    def settings(self) -> list[tuple[Run, int, str, str | None]]:
        """Run, K, rule, and why the model was not trained for that, or None; the settings of a model in a row."""
        return list(self._settings())

    def _settings(self) -> Iterator[tuple[Run, int, str, str | None]]:
        for run in self.runs:
            model = self.load(run.model)
            for rule in self.rules:
                for count in (count for count in self.steps if run.answers is None or count in run.answers):
                    grid = model.identity.default_grid()
                    sampler = FlowSampler(model.flow().path, grid=grid, reinjection=rule)
                    yield run, count, rule, incompatibility(model.identity, sampler, count)

    def ruled_out(self) -> list[str]:
        """A sentence for each objective and reason."""
        grouped: dict[tuple[str, str], list[str]] = {}
        for run, count, rule, reason in self.settings:
            if reason is not None:
                grouped.setdefault((run.name, reason), []).append(f"K = {count} with gamma {rule}")
        return [f"{name}, {', '.join(where)}, is ruled out: {reason}." for (name, reason), where in grouped.items()]

    def with_cost(self, run: Run, samples: Samples) -> Samples:
        """``samples`` with what training cost: passes per example, and wall time with the rounds before the run."""
        own = [each for each in self.runs if each.name == run.name]
        seconds = sum(each.seconds for each in own[: own.index(run) + 1])
        return replace(samples, numbers={**samples.numbers, "passes": run.passes, "training_seconds": seconds})


@lru_cache(maxsize=1)
def _load(folder: Path, kind: Kind, device: str) -> SavedModel:
    return SavedModel.from_pretrained(folder, kind=kind).to(device)


def text_plan(
    study: TextStudy,
    models: Models,
    readouts: Sequence[str],
    temperatures: Sequence[float],
    provenance: dict[str, Any],
) -> Plan:
    """Real text and the other yardsticks, and every model at every setting and temperature; all readouts of the same
    latents."""
    groups = study.yardsticks(temperatures=temperatures)
    for run, count, rule, reason in models.settings:
        for sampling, settings in flow_settings(Sampling(count, rule), readouts, temperatures, run.name):
            if reason is None:
                own = list(dict.fromkeys(str(setting["readout"]) for setting in settings))
                make = partial(_make_texts, models, run, sampling, own)
                groups.append(Group(settings, make, models.digests[run.model]))
    return study.plan(groups, MEASURES, keep=KEPT, provenance=provenance)


def _make_texts(
    models: Models, run: Run, sampling: Sampling, readouts: Sequence[str], batch: Batch, settings: Sequence[Setting]
) -> list[Samples]:
    texts = FlowTexts(models.load(run.model), sampling, readouts)
    return [models.with_cost(run, samples) for samples in texts.make(batch, settings)]


def image_plan(
    base: Path, models: Models, num_samples: int, seeds: Sequence[int], provenance: dict[str, Any], batch_size: int = 64
) -> Plan:
    """Train images against held-out ones, and every model at every setting against both and the flow in ``base``."""
    teacher = SavedModel.from_pretrained(base, kind="images").to(models.device)
    groups = []
    for run, count, rule, reason in models.settings:
        if reason is None:
            setting: Setting = {"name": run.name, "num_steps": count, "reinjection": rule}
            make = partial(_make_images, models, run, batch_size)
            groups.append(Group((setting,), make, models.digests[run.model]))
    study = ImageStudy(teacher, num_samples, tuple(seeds), batch_size)
    return study.plan(groups, models.device, provenance)


def _make_images(models: Models, run: Run, batch_size: int, batch: Batch, settings: Sequence[Setting]) -> list[Samples]:
    model = models.load(run.model)
    return [models.with_cost(run, generated(model, batch, setting, batch_size)) for setting in settings]
