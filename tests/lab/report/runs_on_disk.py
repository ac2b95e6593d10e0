"""Files of a run, as the commands leave them, with made figures."""

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fewstep.evaluation.rows import Row, RowFile, Value, hash_of
from fewstep.metrics.intervals import Interval

PROTOCOL: dict[str, Any] = {"scorer": {"class": "RunScorer"}, "block_size": 32, "versions": {"fewstep": "0"}}
TIMES = [0.25, 0.5, 0.75]
AXES = {"title": "Title", "x_label": "x", "y_label": "y", "kind": "lines", "log_x": False, "log_y": False}


def estimate(value: float | None, spread: float = 0.1) -> dict[str, Any]:
    """An estimate as it stands in JSON."""
    interval = None if value is None else {"low": value * (1 - spread), "high": value * (1 + spread)}
    return {"value": value, "interval": interval, "num_examples": 16}


def series(x: list[float], y: list[float]) -> dict[str, Any]:
    """A curve as it stands in JSON."""
    return {"label": "made", "x": x, "y": y, "low": None, "high": None}


@dataclass
class MadeDiagnosis:
    """A diagnosis of a healthy text model; tests change single figures."""

    table: dict[str, float | None] = field(
        default_factory=lambda: {
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
    )
    decidedness: list[float] = field(default_factory=lambda: [0.3, 0.6, 0.9])
    masses: list[float] = field(default_factory=lambda: [0.5, 0.1, 0.01])
    stiffness: list[float] = field(default_factory=lambda: [1.0, 2.0, 3.0])
    left_out: dict[str, str] = field(default_factory=dict)
    kind: str = "text"

    def to_dict(self) -> dict[str, Any]:
        """What ``diagnostics.json`` holds; the trajectory has three steps that start at ``TIMES``."""
        facts = {"late_flip_rate": {"num_predictions": 3}, "tube": {"times": TIMES}}
        scales = [(1 - t) / t for t in TIMES]
        curves = {
            "boundary_distance": {"histogram": series([0.25, 0.75], [0.25, 0.75])},
            "tube": {key: series(scales, self.masses) for key in ("mass", "flips", "isotropic")},
            "decidedness": {"decidedness": series(TIMES, self.decidedness)},
            "stiffness": {"stiffness": series(TIMES, self.stiffness)},
            "late_flip_rate": {},
            "decision_step": {"shares": series([1.0, 2.0, 3.0], [0.5, 0.3, 0.2])},
        }
        curves["table"] = {}
        rows = {
            "table": [
                {"name": name, "estimate": estimate(value), "unit": "", "note": ""}
                for name, value in self.table.items()
            ]
        }
        return {
            "kind": self.kind,
            "model": "made",
            "n": 100,
            "num_examples": 16,
            "num_positions": 2,
            "seed": 0,
            "left_out": self.left_out,
            "protocol": {"block_length": 32},
            "results": {
                name: {
                    "name": name,
                    "rows": rows.get(name, []),
                    "curves": lines,
                    "axes": AXES,
                    "facts": facts.get(name, {}),
                }
                for name, lines in curves.items()
            },
        }


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
) -> Row:
    """A row of ``rows.jsonl``; the interval of the perplexity is ``spread`` to both sides; ``changes`` are values."""
    setting: dict[str, Any] = {"name": name}
    if readout is not None:
        setting |= {"readout": readout, "num_steps": steps, "reinjection": gamma, "noise": "fresh", "snap": "none"}
    values = {"entropy_nats": 3.0, "repeated_4grams": 0.0, "longest_copy_tokens": 5.0, "memorised_8grams": 0.0}
    values |= {"nfe": 1.0 + (steps or 0), "tokens_per_second": 100.0, **changes}
    measured = {name: Value(value) for name, value in values.items()}
    measured["perplexity"] = Value(perplexity, Interval(perplexity * (1 - spread), perplexity * (1 + spread)))
    return Row(setting, measured, 8, (0,), "abc", hash_of(protocol), protocol, 8, "cpu", examples=tuple(examples))


def sweep_rows(**changed: Row) -> list[Row]:
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
    rows: list[Row] | None = None,
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
