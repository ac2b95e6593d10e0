"""Sweeps over the trained models of a comparison: text under the plan of ``fewstep evaluate``, images by distance.

N samples of a setting, K steps.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache, partial
from itertools import product
from pathlib import Path
from typing import Any

from fewstep.evaluation.rows import Setting
from fewstep.evaluation.sweep import Batch, Group, Plan, Samples, model_digest
from fewstep.evaluation.text_plan import TextStudy
from fewstep.evaluation.texts import FlowTexts, Sampling, flow_settings
from fewstep.lab.compare.runs import Run
from fewstep.lab.images.study import ImageStudy, generated
from fewstep.model import Kind, SavedModel
from fewstep.samplers import FlowSampler, incompatibility

MEASURES = ("scores", "repetition", "copies", "late_flips", "cci", "rms")
Make = Callable[[SavedModel, Batch, Sequence[Setting]], list[Samples]]


@dataclass(frozen=True)
class Models:
    """The trained models of ``runs``, sampled at every number of ``steps`` under every rule of ``rules``."""

    runs: Sequence[Run]
    steps: Sequence[int]
    rules: Sequence[str]
    kind: Kind
    device: str

    @cached_property
    def settings(self) -> list[tuple[Run, str, int, str, str | None]]:
        """Run, digest of its model, K, rule, and why the model was not trained for that, or None; the settings of a
        model in a row."""
        collected = []
        for run in self.runs:
            model = _load(run.model, self.kind, self.device)
            digest, path, grid = model_digest(model), model.flow().path, model.identity.default_grid()
            for rule, count in product(self.rules, self.steps):
                if run.answers is None or count in run.answers:
                    sampler = FlowSampler(path, grid=grid, reinjection=rule)
                    collected.append((run, digest, count, rule, incompatibility(model.identity, sampler, count)))
        return collected

    def ruled_out(self) -> list[str]:
        """A sentence for each objective and reason."""
        grouped: dict[tuple[str, str], list[str]] = {}
        for run, _, count, rule, reason in self.settings:
            if reason is not None:
                grouped.setdefault((run.name, reason), []).append(f"K = {count} with gamma {rule}")
        return [f"{name}, {', '.join(where)}, is ruled out: {reason}." for (name, reason), where in grouped.items()]

    def group(self, run: Run, digest: str, settings: tuple[Setting, ...], make: Make) -> Group:
        """What ``make`` gives of the run's model, with what training cost: passes per example, and wall time with the
        rounds before the run."""
        rounds = [each for each in self.runs if each.name == run.name]
        seconds = sum(each.seconds for each in rounds[: rounds.index(run) + 1])
        cost = {"passes": run.passes, "training_seconds": seconds}

        def costed(batch: Batch, asked: Sequence[Setting]) -> list[Samples]:
            samples = make(_load(run.model, self.kind, self.device), batch, asked)
            return [replace(each, numbers={**each.numbers, **cost}) for each in samples]

        return Group(settings, costed, digest)


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

    def texts(sampling: Sampling, model: SavedModel, batch: Batch, asked: Sequence[Setting]) -> list[Samples]:
        return FlowTexts(model, sampling, readouts).make(batch, asked)

    groups = study.yardsticks(temperatures=temperatures)
    for run, digest, count, rule, reason in models.settings:
        if reason is None:
            for sampling, settings in flow_settings(Sampling(count, rule), readouts, temperatures, run.name):
                groups.append(models.group(run, digest, settings, partial(texts, sampling)))
    return study.plan(groups, MEASURES, provenance)


def image_plan(
    base: Path, models: Models, num_samples: int, seeds: Sequence[int], provenance: dict[str, Any], batch_size: int = 64
) -> Plan:
    """Train images against held-out ones, and every model at every setting against both and the flow in ``base``."""
    teacher = SavedModel.from_pretrained(base, kind="images").to(models.device)
    groups = []
    for run, digest, count, rule, reason in models.settings:
        if reason is None:
            setting: Setting = {"name": run.name, "num_steps": count, "reinjection": rule}
            groups.append(models.group(run, digest, (setting,), generated))
    study = ImageStudy(teacher, num_samples, tuple(seeds), batch_size)
    return study.plan(groups, models.device, provenance)
