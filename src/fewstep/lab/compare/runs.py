"""The training runs of a comparison: equal compute from one teacher, each a command line of ``fewstep train fit``."""

import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import yaml
from jsonargparse import ArgumentParser

from fewstep.cli.output import write_text
from fewstep.errors import UserError
from fewstep.model import SavedModel
from fewstep.objectives import OBJECTIVES, Objective
from fewstep.registry import resolve
from fewstep.settings import configs_folder, size_sections

if TYPE_CHECKING:
    from fewstep.lab.compare.command import CompareOptions

FLOW, PROGRESSIVE = "flow_matching", "progressive"
"""The objective that the others are compared with, and the one that takes a run per number of steps."""
STAGES = {"text": "flow", "images": "image_flow"}
MARKER = "training.json"
Kind = Literal["text", "images"]


@dataclass(frozen=True)
class Run:
    """One training run of the objective ``name``, whose model lies in ``folder``/model.

    ``settings`` is the file that changes the stage's, ``flags`` what differs from both. ``passes``: what its ``steps``
    cost an example of a batch, those of the rounds before it included. ``start`` is the model that it starts from, and
    learns from where it is ``taught``. ``answers``: the numbers of sampling steps that it is for, None for all.
    """

    name: str
    folder: Path
    settings: Path
    flags: tuple[str, ...]
    steps: int
    passes: float
    start: Path | None = None
    taught: bool = False
    answers: tuple[int, ...] | None = None

    @property
    def model(self) -> Path:
        """Where the trained model lies."""
        return self.folder / "model"

    @property
    def seconds(self) -> float:
        """Wall time of the training so far."""
        return float(json.loads((self.folder / MARKER).read_text())["seconds"])


def planned(
    names: Sequence[str],
    kind: Kind,
    out: Path,
    *,
    budget: int,
    teacher_steps: int,
    steps: Sequence[int],
) -> list[Run]:
    """The teacher, a plain flow, and from it the runs of every objective, as many steps as ``budget`` passes pay for.

    An objective outside the package, given by its dotted path, is trained with the flow's settings. ``kind``:
    "text" or "images". Raises ``UserError``.
    """
    base = configs_folder() / f"{STAGES[kind]}.yaml"
    teacher = Run("teacher", out / "teacher", settings_of(FLOW), (), teacher_steps, 3.0 * teacher_steps)
    runs = [teacher]
    for name in dict.fromkeys(names):
        cls = resolve(OBJECTIVES, name, "objective")
        settings = settings_of(name if name in OBJECTIVES else FLOW)
        if name == PROGRESSIVE:
            runs += _rounds(settings, base, out / name, teacher.model, budget, steps)
            continue
        two_times = str(cls.estimate.two_times).lower()
        own = () if name in OBJECTIVES else (f"--model.objective={name}", f"--model.denoiser.two_times={two_times}")
        objective = objective_of(base, settings, {}, None if name in OBJECTIVES else name)
        count = max(1, round(budget / objective.passes_per_step))
        passes = count * objective.passes_per_step
        runs.append(Run(name, out / name, settings, own, count, passes, teacher.model, objective.needs_teacher))
    return runs


def _rounds(settings: Path, base: Path, folder: Path, start: Path, budget: int, steps: Sequence[int]) -> list[Run]:
    """A run a number of steps, from many to few, each going on from the one before with its share of the budget."""
    rounds: list[Run] = []
    passes, before, counts = 0.0, 2 * max(steps), sorted(set(steps), reverse=True)
    for num_steps in counts:
        if before % num_steps:
            raise UserError(
                f"steps {counts}: {PROGRESSIVE} goes from {before} to {num_steps}, which does not divide it"
            )
        own = {"num_steps": num_steps, "teacher_steps": before // num_steps}
        objective = objective_of(base, settings, own)
        count = max(1, round(budget / len(counts) / objective.passes_per_step))
        passes += count * objective.passes_per_step
        flags = tuple(f"--model.objective.{name}={value}" for name, value in own.items())
        place = folder / f"round_{num_steps}"
        rounds.append(Run(PROGRESSIVE, place, settings, flags, count, passes, start, True, (num_steps,)))
        before, start = num_steps, place / "model"
    return rounds


def settings_of(name: str) -> Path:
    """The settings file of a registered objective."""
    return configs_folder() / "objectives" / f"{name}.yaml"


def objective_of(base: Path, changes: Path, own: Mapping[str, Any], class_path: str | None = None) -> Objective:
    """The objective of the settings file ``base`` with ``changes`` and its ``own`` arguments, or of ``class_path``."""
    first, second = (yaml.safe_load(file.read_text(encoding="utf-8"))["model"]["init_args"] for file in (base, changes))
    first, second = first["objective"], second.get("objective", {})
    arguments = {"time_sampler": first["init_args"]["time_sampler"], **second.get("init_args", {}), **own}
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(Objective, "objective")
    chosen = {"class_path": class_path or second.get("class_path", first["class_path"]), "init_args": arguments}
    return parser.instantiate(parser.parse_object({"objective": chosen})).objective


def train(run: Run, arguments: Sequence[str], model: str) -> bool:
    """Train one run in this process, resuming an interrupted one; false if it was done before.

    ``model``: what is compared. Raises ``UserError`` if its folder holds a run of other settings.
    """
    marker, settings = run.folder / MARKER, json.loads(json.dumps([*arguments, os.path.abspath(model)]))
    state = json.loads(marker.read_text()) if marker.is_file() else {"settings": settings, "seconds": 0.0}
    if state["settings"] != settings:
        strange = [new for new in settings if new not in state["settings"]]
        raise UserError(f"{run.folder} was trained otherwise (now {' '.join(strange)[:200]}): give another --out")
    if (run.folder / "model" / "config.json").is_file():
        if not marker.is_file():
            raise UserError(f"{run.folder} holds a run that is not this command's: give another --out")
        return False
    from fewstep.training.command import run_training

    run.folder.mkdir(parents=True, exist_ok=True)
    began = time.perf_counter()
    resume = ["--ckpt_path", "last"] if (run.folder / "checkpoints" / "last.ckpt").is_file() else []
    try:
        run_training([*arguments, *resume])
    finally:
        state["seconds"] += time.perf_counter() - began
        write_text(marker, json.dumps(state, indent=1) + "\n")
    return True


def training_arguments(run: Run, options: "CompareOptions", kind: Kind) -> list[str]:
    """The command line of a run: the stage's file, the objective's, the size, and what the comparison decides."""
    result = ["fit", "--config", str(configs_folder() / f"{STAGES[kind]}.yaml"), "--config", str(run.settings)]
    section = size_sections(options.size).get(STAGES[kind]) if options.size else None
    result += ["--config", json.dumps(section)] if section else []  # not --size: settings of a run show what changed
    result += [f"--run_dir={run.folder}", f"--model.autoencoder={options.model}", *run.flags]
    result += [] if run.start is None else [f"--model.initialise_from={run.start}"]
    result += [f"--model.teacher={run.start}"] if run.taught else []
    result += _data_flags(options, kind)
    if options.device != "auto":
        result.append(f"--trainer.accelerator={'gpu' if options.device == 'cuda' else 'cpu'}")
    lengths = {"max_steps": run.steps, "val_check_interval": run.steps, "log_every_n_steps": min(50, run.steps)}
    result += [f"--trainer.{name}={value}" for name, value in lengths.items()]
    result += [f"--model.optimizer.warmup_steps={min(100, run.steps // 5)}", "--diagnostics.every_n_validations=0"]
    return result


def _data_flags(options: "CompareOptions", kind: Kind) -> list[str]:
    """Flags of the data that the model was trained on; of text also another, cut as the model reads it."""
    identity = SavedModel.from_pretrained(options.model, allow=options.allowed, kind=kind).identity
    if kind == "images":
        images = {"class_path": f"fewstep.lab.images.{identity.source}", "init_args": identity.source_config}
        return [f"--data.images={json.dumps(images)}"]
    flags = [f"--data.source={options.source or identity.source}", f"--data.block_size={identity.block_size}"]
    flags.append(f"--data.cache_dir={options.cache_dir}")
    return flags + ([f"--data.max_documents={options.max_documents}"] if options.max_documents else [])
