"""A run as the report sees it: what the commands left in its folder, read strictly into plain dataclasses."""

import csv
import io
import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError, safe_open

from fewstep.diagnostics.result import Result, Series
from fewstep.errors import UserError, first_line
from fewstep.evaluation.diagnosis import Diagnosis
from fewstep.evaluation.rows import Row, RowFile, at_usual_temperature, check_protocol
from fewstep.storage import Manifest, read_manifest

T = TypeVar("T")

LOSSES = (("train/loss", "train"), ("val/loss", "held out"))
DIAGNOSIS, REMEDY = "diagnostics.json", "re-create or delete the file"
DIAGNOSES = ("diagnosis", "paper")
"""Folders of a diagnosis beside its model; the first that is there belongs to the run."""


@dataclass(frozen=True)
class StageLog:
    """Loss curves of one ``stage`` over its steps, and the last validation's values by their columns."""

    stage: str
    curves: tuple[Series, ...]
    last: dict[str, float]


@dataclass(frozen=True)
class Run:
    """What a run holds; what is missing is None or empty.

    ``name`` for headings, ``path`` as the user wrote it, ``sizes`` the numbers stored in each part of the model,
    ``stages`` in the order of their names. ``rows`` of a sweep share their protocol.
    """

    name: str
    path: str
    manifest: Manifest | None = None
    sizes: dict[str, int] = field(default_factory=dict)
    diagnosis: Diagnosis | None = None
    stages: tuple[StageLog, ...] = ()
    rows: tuple[Row, ...] = ()

    @property
    def kind(self) -> str:
        """ "text" or "images"."""
        return self.diagnosis.kind if self.diagnosis else str(self.identity.get("kind", "text"))

    @property
    def identity(self) -> dict[str, Any]:
        """Of the model; empty without one."""
        return {} if self.manifest is None else self.manifest.identity

    @property
    def results(self) -> dict[str, Result]:
        """Of the diagnosis, by name; empty without one."""
        return {} if self.diagnosis is None else self.diagnosis.results


def read_run(path: str | Path) -> Run:
    """Read a run's folder, a folder that holds some of its files, or a diagnosis alone (its folder or JSON file).

    Raises ``UserError`` in one line, naming file and key, where something is broken, and for an empty folder.
    """
    folder = Path(path).expanduser()
    if folder.is_file():
        name = _name(folder.parent) if folder.name == DIAGNOSIS else folder.stem
        return Run(name, str(path), diagnosis=read_json(Diagnosis, folder))
    if not folder.is_dir():
        raise UserError(f"{path} does not exist: give a run's folder, or a diagnosis")
    if (folder / "config.json").is_file() and any(folder.glob("*.safetensors")):
        raise UserError(f"{path} is a model: give the run's folder that contains it, {folder.resolve().parent}")
    model, diagnoses = folder / "model", [*(folder / name / DIAGNOSIS for name in DIAGNOSES), folder / DIAGNOSIS]
    sweeps = (folder / "evaluation" / "rows.jsonl", folder / "rows.jsonl")  # of evaluate, else of quickstart
    rows = next(filter(None, (RowFile(file).read() for file in sweeps)), [])
    run = Run(
        name=_name(folder),
        path=str(path),
        manifest=read_manifest(model) if (model / "config.json").is_file() else None,
        sizes={file.stem: _stored_numbers(file) for file in sorted(model.glob("*.safetensors"))},
        diagnosis=next((read_json(Diagnosis, file) for file in diagnoses if file.is_file()), None),
        stages=tuple(_stage_logs(folder)),
        rows=tuple(row for row in rows if at_usual_temperature(row.setting)),
    )
    check_protocol(rows)
    if not any((run.manifest, run.sizes, run.diagnosis, run.stages, run.rows)):
        expected = "model/, diagnosis/diagnostics.json, evaluation/rows.jsonl or */csv"
        raise UserError(f"{path} holds nothing of a run: expected some of {expected}")
    return run


def read_runs(paths: list[str]) -> tuple[Run, ...]:
    """Each of ``paths`` by :func:`read_run`; a number is added to the name of a second run of the same name.

    Raises ``UserError`` where the same place is given twice.
    """
    runs: dict[str, Run] = {}
    places: set[Path] = set()
    for path in paths:
        place = Path(path).expanduser().resolve()
        if place in places:
            raise UserError(f"{path} is given twice: give each run once")
        places.add(place)
        run = read_run(path)
        names = [run.name, *(f"{run.name} ({number})" for number in range(2, len(paths) + 1))]
        name = next(name for name in names if name not in runs)
        runs[name] = replace(run, name=name)
    return tuple(runs.values())


def _read_text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{file} is not UTF-8 (byte {error.start}): {REMEDY}") from None


def read_json(kind: type[T], file: Path) -> T:
    """A dataclass from the JSON ``file``, strictly: no conversion between types.

    Raises ``UserError`` that names the first key that is wrong.
    """
    try:
        return TypeAdapter(kind).validate_json(_read_text(file), strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"])) or "content"
        is_there = f"{str(first['input'])[:40]!r}: {first['msg']}"
        raise UserError(f"{file}: {key} is {'missing' if first['type'] == 'missing' else is_there}; {REMEDY}") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file}: {first_line(error)}; {REMEDY}") from None


def _name(folder: Path) -> str:
    """The last name that says something: a diagnosis lies in a folder called diagnosis or paper, beside its model."""
    resolved = folder.resolve()
    return (resolved.parent.name if resolved.name in DIAGNOSES else resolved.name) or "run"


def _stored_numbers(file: Path) -> int:
    """From the header, so that nothing large is read."""
    try:
        with safe_open(file, "pt") as tensors:
            return sum(math.prod(tensors.get_slice(name).get_shape()) for name in tensors.keys())  # noqa: SIM118 - it is no dict
    except (SafetensorError, OSError) as error:
        raise UserError(f"{file} is damaged or cut short ({first_line(error)}): save the model again") from None


def _stage_logs(folder: Path) -> Iterator[StageLog]:
    """Of ``folder`` itself, where that is a stage's, and of the stages in it."""
    logs = {item.name: item for item in (*folder.iterdir(), folder.resolve()) if (item / "csv").is_dir()}
    for stage in sorted(logs):
        versions = logs[stage].glob("csv/version_*/metrics.csv")  # a stage that was resumed wrote several
        ordered = sorted(versions, key=lambda file: (len(file.parent.name), file.parent.name))
        rows = [row for file in ordered for row in _csv_rows(file)]
        curves = []
        for column, label in LOSSES:
            if points := {row["step"]: row[column] for row in rows if column in row}:
                curves.append(Series(label, *zip(*sorted(points.items()), strict=True)))
        last = {column: value for row in rows for column, value in row.items() if column.startswith("val/")}
        yield StageLog(stage, tuple(curves), last)


def _csv_rows(file: Path) -> Iterator[dict[str, float]]:
    """The finite numbers of each row that has a step."""
    try:
        for row in csv.DictReader(io.StringIO(_read_text(file), newline="")):
            if "step" not in row:
                raise UserError(f"{file} has no column step: expected a log of fewstep's training; delete it")
            values = {column: float(cell) for column, cell in row.items() if column and cell}
            if "step" in values:
                yield {column: value for column, value in values.items() if math.isfinite(value)}
    except (csv.Error, ValueError, TypeError) as error:
        raise UserError(f"{file}: {first_line(error)}: expected a number; delete the file") from None
