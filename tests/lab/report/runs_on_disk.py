"""Files of a run, as the commands leave them, with made figures."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from fewstep.diagnostics.result import Axes, Estimate, Result, Row, Series
from fewstep.evaluation import rows as sweep
from fewstep.evaluation.diagnosis import Diagnosis
from fewstep.evaluation.rows import RowFile, Value, hash_of
from fewstep.metrics.intervals import Interval

PROTOCOL: dict[str, Any] = {"scorer": {"class": "RunScorer"}, "block_size": 32, "versions": {"fewstep": "0"}}
TIMES = (0.25, 0.5, 0.75)
TABLE: dict[str, float | None] = {
    "dabi": 2.0,
    "dabi_fraction": 0.02,
    "dabi_data": 1.0,
    "noise_accuracy_at_0": 1.0,
    "noise_accuracy_at_0.4": 0.95,
    "boundary_distance_p01": 0.5,
    "boundary_distance_p50": 1.0,
    "boundary_distance_generated_p50": 0.9,
    "late_flip_rate": 0.01,
    "listening_gain_nats": 2.0,
    "cci": 0.3,
    "tube_c": 1.0,
    "tube_fit_error": 0.01,
}


def result(name: str, *keys: str, x: Iterable[float] = (), y: Iterable[float] = (), **facts: Any) -> Result:
    """A result with the same curve under each of ``keys``."""
    curve = Series("made", tuple(x), tuple(y))
    return Result(name, (), dict.fromkeys(keys, curve), Axes("Title", "x", "y"), facts)


@dataclass
class MadeDiagnosis:
    """A diagnosis of a healthy text model; tests change single figures."""

    table: dict[str, float | None] = field(default_factory=TABLE.copy)
    decidedness: Sequence[float] = (0.3, 0.6, 0.9)
    masses: Sequence[float] = (0.5, 0.1, 0.01)
    stiffness: Sequence[float] = (1.0, 2.0, 3.0)
    left_out: dict[str, str] = field(default_factory=dict)
    kind: Literal["text", "images"] = "text"

    def to_dict(self) -> dict[str, Any]:
        """What ``diagnostics.json`` holds; the trajectory has three steps that start at ``TIMES``."""
        rows = [
            Row(name, Estimate(value, None if value is None else Interval(0.9 * value, 1.1 * value), 16))
            for name, value in self.table.items()
        ]
        scales = [(1 - t) / t for t in TIMES]
        results = (
            result("boundary_distance", "histogram", x=(0.25, 0.75), y=(0.25, 0.75)),
            result("tube", "mass", "flips", "isotropic", x=scales, y=self.masses, times=TIMES),
            result("decidedness", "decidedness", x=TIMES, y=self.decidedness),
            result("stiffness", "stiffness", x=TIMES, y=self.stiffness),
            result("late_flip_rate", num_predictions=3),
            result("decision_step", "shares", x=(1.0, 2.0, 3.0), y=(0.5, 0.3, 0.2)),
            replace(result("table"), rows=tuple(rows)),
        )
        by_name = {each.name: each for each in results}
        diagnosis = Diagnosis(self.kind, "made", by_name, 100, 16, 2, 0, self.left_out, {"block_length": 32})
        return json.loads(diagnosis.to_json())


def sweep_row(
    readout: str | None,
    steps: int | None,
    gamma: str | None,
    perplexity: float,
    *,
    name: str = "flow",
    spread: float = 0.02,
    examples: Iterable[str] = ("some text",),
    protocol: dict[str, Any] = PROTOCOL,
    **changes: float,
) -> sweep.Row:
    """A row of ``rows.jsonl``; the interval of the perplexity is ``spread`` to both sides; ``changes`` are values."""
    setting: dict[str, Any] = {"name": name}
    if readout is not None:
        setting |= {"readout": readout, "num_steps": steps, "reinjection": gamma, "noise": "fresh", "snap": "none"}
    values = {"entropy_nats": 3.0, "repeated_4grams": 0.0, "longest_copy_tokens": 5.0, "memorised_8grams": 0.0}
    values |= {"nfe": 1.0 + (steps or 0), "tokens_per_second": 100.0, **changes}
    measured = {name: Value(value) for name, value in values.items()}
    measured["perplexity"] = Value(perplexity, Interval(perplexity * (1 - spread), perplexity * (1 + spread)))
    return sweep.Row(setting, measured, 8, (0,), "abc", hash_of(protocol), protocol, 8, "cpu", examples=tuple(examples))


def sweep_rows(**changed: sweep.Row) -> list[sweep.Row]:
    """Rows of a healthy model: both ways help, and text is like real text. ``changed`` replaces rows by their names."""
    rows = {
        "real": sweep_row(None, None, None, 50.0, name="held-out text", memorised_8grams=0.06),
        "few": sweep_row("parallel", 4, "0", 200.0),
        "few_noise": sweep_row("parallel", 4, "1", 100.0),
        "few_head": sweep_row("head", 4, "0", 80.0),
        "many": sweep_row("parallel", 16, "0", 90.0),
        "many_noise": sweep_row("parallel", 16, "1", 60.0),
        "many_head": sweep_row("head", 16, "0", 70.0),
    }
    assert set(changed) <= set(rows)
    return list({**rows, **changed}.values())


def write_run(
    folder: Path,
    *,
    diagnosis: MadeDiagnosis | None = None,
    rows: list[sweep.Row] | None = None,
    logs: bool = False,
) -> Path:
    """Write what is given into ``folder``, where the commands would, and give the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    if diagnosis is not None:
        (folder / "diagnosis").mkdir()
        (folder / "diagnosis" / "diagnostics.json").write_text(json.dumps(diagnosis.to_dict()), encoding="utf-8")
    if rows is not None:
        (folder / "evaluation").mkdir()
        file = RowFile(folder / "evaluation" / "rows.jsonl")
        for row in rows:
            file.append(row)
    if logs:
        log = folder / "flow" / "csv" / "version_0" / "metrics.csv"
        log.parent.mkdir(parents=True)
        log.write_text("epoch,step,train/loss,val/loss\n0,10,0.9,\n0,20,0.7,\n0,20,,0.8\n", encoding="utf-8")
    return folder


def whole_run(folder: Path) -> Path:
    """A run with all of it but a model."""
    return write_run(folder, diagnosis=MadeDiagnosis(), rows=sweep_rows(), logs=True)
