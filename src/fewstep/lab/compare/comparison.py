"""Models of one latent space side by side: what is measured on whom, and what a row holds.

N samples, K steps, R resamples.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Protocol

import yaml
from jsonargparse import ArgumentParser
from torch import Tensor

from fewstep.errors import UserError
from fewstep.metrics.intervals import Interval
from fewstep.objectives import OBJECTIVES, Objective
from fewstep.registry import resolve

FLOW, PROGRESSIVE = "flow_matching", "progressive"
"""The objective that the others are compared with, and the one that takes a run per number of steps."""
ROWS, YARDSTICKS = "rows.jsonl", "yardsticks.jsonl"


@dataclass(frozen=True)
class Compared:
    """What was measured on the samples of an objective at a setting, or of a yardstick.

    ``readout`` is None for images, ``num_steps`` K and ``reinjection`` for yardsticks. ``ruled_out`` says why the model
    is not sampled at this setting; all measures are None then. ``quality``, with its 95 % interval over samples, is
    lower for better samples: see :class:`Quality`. ``others`` are the protocol's further columns, as shown.
    ``late_flip_rate``: share of tokens that the last step changes. ``stiffness_peak``: of the model, 1 / time.
    ``passes``: forward passes per example that training took, all rounds together, without the teacher's own training;
    ``seconds``: wall time of that training. ``gain``: the plain flow's quality at this setting over this row's, with
    the 95 % interval of a paired bootstrap. ``samples`` (N, c): the numbers of each sample that the quality is a
    statistic of. ``stamp``: protocol and model. ``provenance``: code, versions, command and machine; not compared.
    """

    objective: str
    readout: str | None
    num_steps: int | None
    reinjection: float | None
    ruled_out: str | None = None
    quality: float | None = None
    quality_interval: Interval | None = None
    others: tuple[tuple[str, str], ...] = ()
    late_flip_rate: float | None = None
    stiffness_peak: float | None = None
    passes: float | None = None
    seconds: float | None = None
    gain: float | None = None
    gain_interval: Interval | None = None
    samples: tuple[tuple[float, ...], ...] = ()
    stamp: str = ""
    provenance: dict[str, Any] | None = None

    @property
    def setting(self) -> tuple[str | None, int | None, float | None]:
        """Readout, K and strength."""
        return self.readout, self.num_steps, self.reinjection

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Compared":
        """The inverse of :meth:`to_dict`, also after a way through JSON. Raises ``KeyError`` or ``TypeError``."""
        values = {"provenance": None, **values}  # rows of before it was kept lack it
        if set(values) != {item.name for item in fields(cls)}:
            raise KeyError("keys of another version")
        intervals = {
            name: None if values[name] is None else Interval(**values[name])
            for name in ("quality_interval", "gain_interval")
        }
        lists = {name: tuple(map(tuple, values[name])) for name in ("others", "samples")}
        return cls(**{**values, **intervals, **lists})


@dataclass(frozen=True)
class Quality:
    """A number that samples are judged by, lower is better: ``of`` takes resamples (R, N, c) to (R,).

    ``of_seeds``: what counts as a sample is a whole seed, of which there are few.
    """

    name: str
    of: Callable[[Tensor], Tensor]
    of_seeds: bool = False


class Bench(Protocol):
    """Measures models that go back to one, under one protocol."""

    kind: str
    quality: Quality

    @property
    def caption(self) -> str:
        """What the numbers of its rows are."""
        ...

    @property
    def readouts(self) -> Sequence[str | None]:
        """A row each for every setting."""
        ...

    def stamp(self, folder: Path | None) -> str:
        """Protocol and model of the rows of ``folder``; None: of the yardsticks."""
        ...

    def incompatibility(self, folder: Path, num_steps: int, reinjection: float) -> str | None:
        """Why the model in ``folder`` is not sampled so, or None."""
        ...

    def rows(self, folder: Path, num_steps: int, reinjection: float) -> list[Compared]:
        """Samples of the model in ``folder``, measured: a row per readout, with an empty ``objective``."""
        ...

    def yardsticks(self) -> list[Compared]:
        """What samples are compared with; the first row is real data."""
        ...


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


def planned(
    names: Sequence[str],
    settings_of: Callable[[str], Path],
    base: Path,
    out: Path,
    *,
    budget: int,
    teacher_steps: int,
    steps: Sequence[int],
) -> list[Run]:
    """The teacher, a plain flow, and from it the runs of every objective, as many steps as ``budget`` passes pay for.

    An objective outside the package, given by its dotted path, is trained with the flow's settings. ``settings_of``
    gives the file of changes to ``base``, the stage's settings file. Raises ``UserError``.
    """
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
    found: list[Run] = []
    passes, before, wanted = 0.0, 2 * max(steps), sorted(set(steps), reverse=True)
    for num_steps in wanted:
        if before % num_steps:
            raise UserError(
                f"steps {wanted}: {PROGRESSIVE} goes from {before} to {num_steps}, which does not divide it"
            )
        own = {"num_steps": num_steps, "teacher_steps": before // num_steps}
        objective = objective_of(base, settings, own)
        count = max(1, round(budget / len(wanted) / objective.passes_per_step))
        passes += count * objective.passes_per_step
        flags = tuple(f"--model.objective.{name}={value}" for name, value in own.items())
        place = folder / f"round_{num_steps}"
        found.append(Run(PROGRESSIVE, place, settings, flags, count, passes, start, True, (num_steps,)))
        before, start = num_steps, place / "model"
    return found


def objective_of(base: Path, changes: Path, own: Mapping[str, Any], class_path: str | None = None) -> Objective:
    """The objective of the settings file ``base`` with ``changes`` and its ``own`` arguments, or of ``class_path``."""
    first, second = (yaml.safe_load(file.read_text(encoding="utf-8"))["model"]["init_args"] for file in (base, changes))
    first, second = first["objective"], second.get("objective", {})
    arguments = {"time_sampler": first["init_args"]["time_sampler"], **second.get("init_args", {}), **own}
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(Objective, "objective")
    chosen = {"class_path": class_path or second.get("class_path", first["class_path"]), "init_args": arguments}
    return parser.instantiate(parser.parse_object({"objective": chosen})).objective


def measured(
    bench: Bench,
    runs: Sequence[Run],
    seconds: Mapping[Path, float],
    steps: Sequence[int],
    strengths: Sequence[float],
    folder: Path,
    progress: Callable[[int, int, str], object],
    provenance: dict[str, Any] | None = None,
) -> list[Compared]:
    """The yardsticks, and every objective at every number of steps and strength, a row per readout.

    ``seconds`` tells how long the run of each folder took. Each objective has a file ``rows.jsonl`` in its own folder
    below ``folder``; what stands there is not measured again. ``provenance`` goes into every row that is. Raises
    ``UserError`` where a file cannot be read, or its rows are of another protocol or model.
    """
    names = list(dict.fromkeys(run.name for run in runs))
    stamps = {run.folder: bench.stamp(run.model) for run in runs}
    settings = [(name, gamma, count) for name in names for gamma in strengths for count in steps]
    beside = RowsFile(folder / YARDSTICKS)
    rows = beside.at((None, None), bench.stamp(None))
    if not rows:
        real = [replace(row, provenance=provenance) for row in bench.yardsticks()]
        rows = beside.add(real, bench.stamp(None))
    for done, (name, gamma, count) in enumerate(settings, 1):
        mine = [run for run in runs if run.name == name]
        run = next(run for run in mine if run.answers is None or count in run.answers)
        file, stamp = RowsFile(folder / name / ROWS), stamps[run.folder]
        found = file.at((count, gamma), stamp)
        if {row.readout for row in found} < set(bench.readouts):
            if why := bench.incompatibility(run.model, count, gamma):
                found = [Compared(name, readout, count, gamma, ruled_out=why) for readout in bench.readouts]
            else:
                found = bench.rows(run.model, count, gamma)
            took = sum(seconds[one.folder] for one in mine[: mine.index(run) + 1])
            extra: dict[str, Any] = {"objective": name, "passes": run.passes, "seconds": took, "provenance": provenance}
            found = file.add([replace(row, **extra) for row in found], stamp)
        rows += [row for row in found if row.readout in bench.readouts]
        progress(done, len(settings), f"{name} K={count} gamma={gamma:g}")
    return rows


class RowsFile:
    """A JSONL file of rows that is whole at every moment."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def at(self, setting: tuple[int | None, float | None], stamp: str) -> list[Compared]:
        """The rows of K and strength. Raises ``UserError`` where they are of another ``stamp``, or cannot be read."""
        found = [row for row in self.read() if (row.num_steps, row.reinjection) == setting]
        if any(row.stamp != stamp for row in found):
            raise UserError(f"{self.file} holds rows of another scoring protocol or model: give another --out")
        return found

    def read(self) -> list[Compared]:
        """All rows. Raises ``UserError``."""
        try:
            lines = self.file.read_text(encoding="utf-8").splitlines() if self.file.exists() else []
            return [Compared.from_dict(json.loads(line)) for line in lines]
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            raise UserError(f"{self.file} holds no rows of this fewstep version: give another --out") from None

    def add(self, rows: Sequence[Compared], stamp: str) -> list[Compared]:
        """Put ``rows``, stamped, in the place of what has their setting; they are on the disk when this returns."""
        new = [replace(row, stamp=stamp) for row in rows]
        settings = {row.setting[1:] for row in new}
        kept = [row for row in self.read() if row.setting[1:] not in settings]
        draft = self.file.with_name(f".{self.file.name}.new")
        try:
            lines = (json.dumps(row.to_dict(), ensure_ascii=False) + "\n" for row in [*kept, *new])
            draft.write_text("".join(lines), encoding="utf-8")
            draft.replace(self.file)
        except OSError as error:
            raise UserError(f"cannot write {self.file}: {error.strerror or error}") from None
        return new
