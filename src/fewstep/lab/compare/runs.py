"""The training runs of a comparison: equal compute from one teacher, each a command line of ``fewstep train fit``."""

import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jsonargparse import ArgumentParser

from fewstep.cli.output import write_text
from fewstep.errors import UserError
from fewstep.model import Kind, SavedModel
from fewstep.objectives import OBJECTIVES, Objective
from fewstep.registry import resolve
from fewstep.settings import configs_folder, read_yaml, size_sections

if TYPE_CHECKING:
    from fewstep.lab.compare.command import CompareOptions

FLOW, PROGRESSIVE = "flow_matching", "progressive"
"""The objective that the others are compared with, and the one that takes a run per number of steps."""
STAGES = {"text": "flow", "images": "image_flow"}
MARKER = "training.json"


@dataclass(frozen=True)
class Run:
    """One training run of the objective ``name``, by the stage's file, the file ``settings`` and ``flags``.

    ``passes``: what its ``steps`` and the rounds before cost an example of a batch. ``start`` is the model that it
    starts from, and learns from where it is ``taught``. ``answers``: the numbers of sampling steps that it is for.
    """

    name: str
    folder: Path
    settings: Path
    flags: Mapping[str, object]
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
    names: Sequence[str], kind: Kind, out: Path, *, budget: int, teacher_steps: int, steps: Sequence[int]
) -> list[Run]:
    """The teacher, a plain flow, and from it the runs of every objective, as many steps as ``budget`` passes pay for.

    An objective outside the package, given by its dotted path, is trained with the flow's settings. Raises
    ``UserError``.
    """
    base = configs_folder() / f"{STAGES[kind]}.yaml"
    teacher = Run("teacher", out / "teacher", settings_of(FLOW), {}, teacher_steps, 3.0 * teacher_steps)
    runs = [teacher]
    for name in dict.fromkeys(names):
        cls, is_ours = resolve(OBJECTIVES, name, "objective"), name in OBJECTIVES
        settings, class_path = settings_of(name if is_ours else FLOW), None if is_ours else name
        two_times = str(cls.estimate.two_times).lower()
        flags = {} if is_ours else {"model.objective": name, "model.denoiser.two_times": two_times}
        rounds = _rounds(steps) if name == PROGRESSIVE else [{}]
        start, passes = teacher.model, 0.0
        for own in rounds:
            objective = objective_of(base, settings, own, class_path)
            count = max(1, round(budget / len(rounds) / objective.passes_per_step))
            passes += count * objective.passes_per_step
            folder = out / name / f"round_{own['num_steps']}" if own else out / name
            answers = (own["num_steps"],) if own else None
            changed = {**flags, **{f"model.objective.{option}": value for option, value in own.items()}}
            runs.append(Run(name, folder, settings, changed, count, passes, start, objective.needs_teacher, answers))
            start = folder / "model"
    return runs


def _rounds(steps: Sequence[int]) -> list[dict[str, int]]:
    """Options of progressive distillation, from many steps to few, each round going on from the one before."""
    counts, rounds = sorted(set(steps), reverse=True), []
    for before, num_steps in pairwise([2 * counts[0], *counts]):
        if before % num_steps:
            raise UserError(
                f"steps {counts}: {PROGRESSIVE} goes from {before} to {num_steps}, which does not divide it"
            )
        rounds.append({"num_steps": num_steps, "teacher_steps": before // num_steps})
    return rounds


def settings_of(name: str) -> Path:
    """The settings file of a registered objective."""
    return configs_folder() / "objectives" / f"{name}.yaml"


def objective_of(base: Path, changes: Path, own: Mapping[str, Any], class_path: str | None = None) -> Objective:
    """The objective of the settings file ``base`` with ``changes`` and its ``own`` arguments, or of ``class_path``."""
    first, second = (read_yaml(file)["model"]["init_args"] for file in (base, changes))
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
    files = [str(configs_folder() / f"{STAGES[kind]}.yaml"), str(run.settings)]
    if options.size and (section := size_sections(options.size).get(STAGES[kind])):
        files.append(json.dumps(section))  # not --size: settings of a run show what changed
    flags: dict[str, object] = {"run_dir": run.folder, "model.autoencoder": options.model, **run.flags}
    if run.start is not None:
        flags["model.initialise_from"] = run.start
    if run.taught:
        flags["model.teacher"] = run.start
    identity = SavedModel.from_pretrained(options.model, allow=options.allowed, kind=kind).identity
    if kind == "images":
        class_path = f"fewstep.lab.images.{identity.source}"
        flags["data.images"] = json.dumps({"class_path": class_path, "init_args": identity.source_config})
    else:  # another text is cut as the model reads it
        flags |= {"data.source": options.source or identity.source, "data.block_size": identity.block_size}
        flags["data.cache_dir"] = options.cache_dir
        if options.max_documents:
            flags["data.max_documents"] = options.max_documents
    if options.device != "auto":
        flags["trainer.accelerator"] = "gpu" if options.device == "cuda" else "cpu"
    flags |= {"trainer.max_steps": run.steps, "trainer.val_check_interval": run.steps}
    flags |= {"trainer.log_every_n_steps": min(50, run.steps), "model.optimizer.warmup_steps": min(100, run.steps // 5)}
    flags["diagnostics.every_n_validations"] = 0
    given = [word for file in files for word in ("--config", file)]
    return ["fit", *given, *(f"--{name}={value}" for name, value in flags.items())]
