"""Losses of a run's stages, from the CSV logs of training."""

import csv
import io
import math
from dataclasses import dataclass
from pathlib import Path

from fewstep.diagnostics.result import Series
from fewstep.errors import UserError
from fewstep.lab.report.strict_json import read_text

STAGES = ("autoencoder", "flow", "head", "language_model")
"""In the order of training; other stages come after them."""
LOSSES = (("train/loss", "train"), ("val/loss", "held out"))


@dataclass(frozen=True)
class StageLog:
    """Loss curves of one ``stage`` over its steps (empty where nothing was logged), and the last validation's values
    by their columns."""

    stage: str
    curves: tuple[Series, ...]
    last: dict[str, float]


def read_stage_logs(folder: Path) -> tuple[StageLog, ...]:
    """Of ``folder`` itself, where that is a stage's, and of the stages in it. Raises ``UserError``."""
    found = {item.name: item for item in folder.iterdir() if (item / "csv").is_dir()}
    if (folder / "csv").is_dir():
        found[folder.resolve().name] = folder
    order = [name for name in STAGES if name in found] + sorted(set(found) - set(STAGES))
    return tuple(_stage_log(name, found[name]) for name in order)


def _stage_log(name: str, folder: Path) -> StageLog:
    """All versions of the log: a stage that was resumed wrote several."""
    points: dict[str, dict[int, float]] = {column: {} for column, _ in LOSSES}
    last: dict[str, float] = {}
    for file in sorted(folder.glob("csv/version_*/metrics.csv"), key=_version):
        for row in _rows(file):
            step = _number(file, row, "step")
            if step is None:
                continue
            for column, cell in row.items():
                if column is None or not cell:
                    continue
                value = _number(file, row, column)
                if value is not None and column in points:
                    points[column][int(step)] = value
                if value is not None and column.startswith("val/"):
                    last[column] = value
    curves = tuple(
        Series(label, tuple(map(float, sorted(values))), tuple(values[step] for step in sorted(values)))
        for column, label in LOSSES
        if (values := points[column])
    )
    return StageLog(name, curves, last)


def _version(file: Path) -> tuple[int, str]:
    number = file.parent.name.removeprefix("version_")
    return (int(number) if number.isdecimal() else 0, number)


def _rows(file: Path) -> list[dict[str | None, str]]:
    try:
        rows = list(csv.DictReader(io.StringIO(read_text(file), newline="")))
    except csv.Error as error:
        raise UserError(f"{file} is no CSV file ({error}): take it away") from None
    if rows and "step" not in rows[0]:
        raise UserError(f"{file} has no column step: expected a log of fewstep's training; take it away")
    return rows


def _number(file: Path, row: dict[str | None, str], column: str) -> float | None:
    """None for a cell that is empty, or a loss that was not finite: there is no point to draw."""
    cell = row.get(column)
    if not cell:
        return None
    try:
        value = float(cell)
    except (ValueError, TypeError):
        raise UserError(f"{file}: {column} is {cell!r}: expected a number; take the file away") from None
    return value if math.isfinite(value) else None
