"""A whole diagnosis: the measurements that a model allows, as a table, JSON and pictures."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, TypeVar

from fewstep.diagnostics import Diagnostic, DiagnosticRow, Estimate, Picture
from fewstep.errors import UserError
from fewstep.evaluation.columns import aligned_columns
from fewstep.evaluation.diagnosis_protocol import diagnosis_protocol
from fewstep.evaluation.measurements import MEASUREMENTS
from fewstep.evaluation.processes import Processes
from fewstep.evaluation.subject import Subject

Progress = Callable[[int, int, str], object]
"""Called before each measurement, and after the last, as (measurements done, measurements in all, name)."""

Thing = TypeVar("Thing")

COLUMNS = ("diagnostic", "value", "95 % interval", "unit", "examples", "note")


@dataclass(frozen=True)
class Diagnosis:
    """``results`` in the order of the table, and what they share.

    ``kind`` "text" or "images"; ``n`` numbers in one latent; ``left_out`` names the measurements that the model lacks
    the parts for, with those parts; ``protocol`` is what two diagnoses must share for their rows to compare, and
    ``notes`` say what a reader should know beside. ``provenance``: code, versions, command and machine, None where
    nobody told.
    """

    kind: str
    model: str
    results: tuple[Diagnostic, ...]
    n: int
    num_examples: int
    num_positions: int | None
    seed: int
    left_out: Mapping[str, str]
    protocol: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    provenance: Mapping[str, Any] | None = None

    def rows(self) -> tuple[DiagnosticRow, ...]:
        """Every line of the table."""
        return tuple(row for result in self.results for row in result.rows())

    def estimate(self, name: str) -> Estimate:
        """The estimate of the row ``name``. Raises ``KeyError`` where there is none."""
        return {row.name: row.estimate for row in self.rows()}[name]

    def pictures(self) -> dict[str, Picture]:
        """The pictures, by the results' names."""
        drawn = {result.name: result.picture() for result in self.results}
        return {name: picture for name, picture in drawn.items() if picture is not None}

    def to_dict(self) -> dict[str, Any]:
        """Plain values, fit for JSON."""
        shared = {
            "kind": self.kind,
            "model": self.model,
            "n": self.n,
            "num_examples": self.num_examples,
            "num_positions": self.num_positions,
            "seed": self.seed,
            "left_out": dict(self.left_out),
            "protocol": dict(self.protocol),
            "notes": list(self.notes),
            "provenance": None if self.provenance is None else dict(self.provenance),
        }
        table = {row.name: asdict(row.estimate) for row in self.rows()}
        return {**shared, "table": table, "results": {result.name: result.to_dict() for result in self.results}}

    def to_json(self) -> str:
        """Indented JSON. Raises ``ValueError`` should a number be NaN or infinite, which JSON does not have."""
        return json.dumps(self.to_dict(), indent=2, ensure_ascii=False, allow_nan=False) + "\n"

    def to_text(self) -> str:
        """Aligned columns for a terminal, and what was left out."""
        blank = ("",) * len(COLUMNS)  # between results
        lines: list[tuple[str, ...]] = [COLUMNS]
        for result in self.results:
            lines += [*([blank] if len(lines) > 1 else []), *(_cells(row) for row in result.rows())]
        notes = [f"left out: {name}, since the model has no {parts}" for name, parts in self.left_out.items()]
        positions = "" if self.num_positions is None else f", {self.num_positions} positions in each"
        caption = f"{self.num_examples} examples of {self.kind}{positions}; latents of n = {self.n}; seed {self.seed}."
        return "\n".join([aligned_columns(lines, (0, 3, 5)), caption, *notes, *self.notes])


def diagnose_text(
    subject: Subject,
    model: str,
    *,
    only: Sequence[str] | None = None,
    progress: Progress | None = None,
    processes: Processes | None = None,
    data: Mapping[str, Any] | None = None,
) -> Diagnosis:
    """Measure a text model. ``only`` names some of :data:`~fewstep.evaluation.measurements.MEASUREMENTS`.

    Without it, all are made that the model has the parts for. A measurement's figures depend on the subject alone, not
    on what else is measured, so several ``processes`` share them (:func:`run_all`). ``data`` names the text, for the
    protocol. Raises ``UserError`` for an unknown name, and for one that the model lacks a part for.
    """
    parts = subject.generator.bundle.parts()
    chosen = choose(MEASUREMENTS, only)
    missing = {
        name: ", ".join(part for part in measurement.parts if part not in parts) for name, measurement in chosen.items()
    }
    left_out = {name: lacking for name, lacking in missing.items() if lacking}
    if only is not None and left_out:
        for name in left_out:
            subject.generator.bundle.require(*MEASUREMENTS[name].parts, source=f"{model}, asked for {name},")
    runs = {
        name: (lambda run=measurement.run: run(subject)) for name, measurement in chosen.items() if name not in left_out
    }
    results = run_all(runs, progress, processes)
    count, positions = subject.positions.shape
    n = subject.z[0].numel()
    protocol = diagnosis_protocol(
        seed=subject.seed,
        num_examples=count,
        num_positions=positions,
        block_length=subject.ids.shape[1],
        data=data,
        packages=("transformers", "tokenizers"),
    )
    return Diagnosis("text", model, results, n, count, positions, subject.seed, left_out, protocol)


def choose(offered: Mapping[str, Thing], only: Sequence[str] | None) -> dict[str, Thing]:
    """Those of ``offered`` that ``only`` names, in the order of ``offered``; all where it is None.

    Raises ``UserError`` for a name that is not offered.
    """
    if only is None:
        return dict(offered)
    if unknown := [name for name in only if name not in offered]:
        raise UserError(f"unknown measurement {', '.join(unknown)}: expected some of {', '.join(offered)}")
    return {name: item for name, item in offered.items() if name in only}


def run_all(
    runs: Mapping[str, Callable[[], tuple[Diagnostic, ...]]],
    progress: Progress | None,
    processes: Processes | None = None,
) -> tuple[Diagnostic, ...]:
    """The results of all ``runs``, telling ``progress`` before each and at the end.

    Of several ``processes`` each makes a share, and the first has all results, in order; the others have none. Raises
    ``UserError`` in the first for what any of them meets.
    """
    processes = Processes() if processes is None else processes
    share = processes.share(list(enumerate(runs.items())))
    found: list[tuple[int, tuple[Diagnostic, ...], str]] = []
    for done, (place, (name, run)) in enumerate(share):
        if progress is not None:
            progress(done, len(share), name)
        try:
            found.append((place, run(), ""))
        except UserError as error:  # told to all, or the others would wait
            found.append((place, (), str(error)))
            break
    gathered = sorted(processes.gather(found), key=lambda one: one[0])
    for _, _, problem in gathered:
        if problem:
            raise UserError(problem)
    if progress is not None:
        progress(len(share), len(share), "")
    return tuple(result for _, results, _ in gathered for result in results)


def _cells(row: DiagnosticRow) -> tuple[str, ...]:
    estimate = row.estimate
    value = "undetermined" if estimate.value is None else f"{estimate.value:.4g}"
    interval = "" if estimate.interval is None else f"{estimate.interval.low:.4g} - {estimate.interval.high:.4g}"
    return (row.name, value, interval, row.unit, str(estimate.num_examples), row.note)
