"""Files of a run, as the commands leave them, with made figures."""

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fewstep.evaluation.protocol import ScoringProtocol
from fewstep.evaluation.sweep_row import Setting, SweepRow
from fewstep.evaluation.table import GenerationRow, GenerationTable
from fewstep.metrics.intervals import Interval

PROTOCOL = ScoringProtocol(
    scorer={"class": "RunScorer"},
    num_samples=8,
    seeds=(0,),
    block_size=32,
    end_of_text="every token",
    versions={"fewstep": "0"},
    yardsticks={},
)
TIMES = [0.25, 0.5, 0.75]


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
        return {
            "kind": "text",
            "model": "made",
            "n": 100,
            "num_examples": 16,
            "num_positions": 2,
            "seed": 0,
            "left_out": self.left_out,
            "table": {name: estimate(value) for name, value in self.table.items()},
            "results": {
                name: {"name": name, "rows": [], "curves": lines, "axes": None, "facts": facts.get(name, {})}
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
    entropy: float = 3.0,
    memorised: float = 0.0,
    late: float | None = None,
    examples: Iterable[str] = ("some text",),
    protocol: ScoringProtocol = PROTOCOL,
    spread: float = 0.02,
) -> SweepRow:
    """A row of ``rows.jsonl``; the interval is ``spread`` to both sides."""
    plain = steps is not None
    setting = Setting(
        name,
        readout,
        steps,
        gamma,
        1.0 if plain else None,
        1.0 if plain else None,
        "fresh" if plain else None,
        "none" if plain else None,
    )
    return SweepRow(
        setting=setting,
        num_samples=8,
        seeds=(0,),
        perplexity=perplexity,
        perplexity_interval=Interval(perplexity * (1 - spread), perplexity * (1 + spread)),
        perplexity_by_seed=(perplexity,),
        entropy_nats=entropy,
        entropy_interval=Interval(entropy - 0.1, entropy + 0.1),
        scored_tokens=100,
        distinct_1=0.5,
        distinct_2=0.9,
        distinct_4=1.0,
        repeated_4grams=0.0,
        longest_copy_tokens=5,
        mean_copy_tokens=3.0,
        memorised_8grams=memorised,
        mauve=None,
        late_flip_rate=late,
        cci=None,
        cci_interval=None,
        nfe=None if steps is None else steps + 1,
        seconds=1.0,
        tokens_per_second=100.0,
        batch_size=8,
        device="cpu",
        protocol_hash=protocol.hash,
        protocol=protocol.to_dict(),
        model="abc",
        examples=tuple(examples),
    )


def sweep_rows(**changed: SweepRow) -> list[SweepRow]:
    """Rows of a healthy model: both ways help, and text is like real text. ``changed`` replaces rows by their names."""
    rows = {
        "real": sweep_row(None, None, None, 50.0, name="held-out text", memorised=0.06),
        "few": sweep_row("parallel", 4, "0", 200.0),
        "few_noise": sweep_row("parallel", 4, "1", 100.0),
        "few_head": sweep_row("head", 4, "0", 80.0),
        "many": sweep_row("parallel", 16, "0", 90.0),
        "many_noise": sweep_row("parallel", 16, "1", 60.0),
        "many_head": sweep_row("head", 16, "0", 70.0),
    }
    assert set(changed) <= set(rows)
    return list({**rows, **changed}.values())


def quickstart_table(examples: Iterable[str] = ("some text",)) -> GenerationTable:
    """A table with real text and two settings."""

    def row(name: str, readout: str | None, steps: int | None, perplexity: float) -> GenerationRow:
        between = Interval(perplexity * 0.9, perplexity * 1.1)
        gamma = None if steps is None else 0.0
        return GenerationRow(
            name, readout, steps, gamma, steps, 8, perplexity, between, 3.0, 6.0, 0.9, None, tuple(examples)
        )

    rows = (
        row("held-out text", None, None, 50.0),
        row("flow", "parallel", 4, 400.0),
        row("flow", "head", 4, 90.0),
    )
    return GenerationTable(rows, 32, "the run's language model", 0, 8, "cpu")


def write_run(
    folder: Path,
    *,
    diagnosis: MadeDiagnosis | None = None,
    rows: list[SweepRow] | None = None,
    table: GenerationTable | None = None,
    logs: bool = False,
) -> Path:
    """Write what is given into ``folder``, where the commands would, and give the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    if diagnosis is not None:
        (folder / "diagnosis").mkdir()
        (folder / "diagnosis" / "diagnostics.json").write_text(json.dumps(diagnosis.to_dict()), encoding="utf-8")
    if rows is not None:
        (folder / "evaluation").mkdir()
        lines = "".join(json.dumps(row.to_dict()) + "\n" for row in rows)
        (folder / "evaluation" / "rows.jsonl").write_text(lines, encoding="utf-8")
    if table is not None:
        (folder / "table.json").write_text(table.to_json(), encoding="utf-8")
    if logs:
        log = folder / "flow" / "csv" / "version_0" / "metrics.csv"
        log.parent.mkdir(parents=True)
        log.write_text("epoch,step,train/loss,val/loss\n0,10,0.9,\n0,20,0.7,\n0,20,,0.8\n", encoding="utf-8")
    return folder


def whole_run(folder: Path) -> Path:
    """A run with all of it but a model."""
    return write_run(folder, diagnosis=MadeDiagnosis(), rows=sweep_rows(), table=quickstart_table(), logs=True)
