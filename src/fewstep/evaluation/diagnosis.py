"""A whole diagnosis: the measurements that a model allows, as a table, JSON and pictures."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from fewstep.diagnostics.result import Estimate, Picture, Result, Row
from fewstep.errors import UserError
from fewstep.evaluation.columns import aligned_columns
from fewstep.evaluation.measurement import Measurement, Threshold, choose
from fewstep.evaluation.measurements import MEASUREMENTS
from fewstep.evaluation.processes import Processes
from fewstep.evaluation.readout_measurements import FULL, NOISE_LEVELS, DabiEffort, ReadoutSubject
from fewstep.evaluation.subject import ImageSubject, Subject
from fewstep.provenance import versions

Progress = Callable[[int, int, str], object]
"""Called before each measurement, and after the last, as (measurements done, measurements in all, name)."""

PACKAGES = ("transformers", "tokenizers")
"""Packages beside torch that our text models depend on."""
COLUMNS = ("diagnostic", "value", "95 % interval", "unit", "examples", "note")


@dataclass(frozen=True)
class Diagnosis:
    """``results`` in the order of the table, and how they were measured.

    ``kind`` "text" or "images"; ``n`` numbers in one latent; ``left_out`` maps the measurements that the model lacks
    parts for to those parts; ``protocol`` is what two diagnoses must share for their rows to compare; ``notes`` are for
    the reader; ``thresholds`` those of the measurements, by row; ``provenance``: code, versions, command and machine.
    """

    kind: str
    model: str
    results: tuple[Result, ...]
    n: int
    num_examples: int
    num_positions: int | None
    seed: int
    left_out: Mapping[str, str]
    protocol: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    provenance: Mapping[str, Any] | None = None
    thresholds: Mapping[str, Threshold] = field(default_factory=dict)

    def rows(self) -> tuple[Row, ...]:
        """Every line of the table."""
        return tuple(row for result in self.results for row in result.rows)

    def estimate(self, name: str) -> Estimate:
        """The estimate of the row ``name``."""
        return {row.name: row.estimate for row in self.rows()}[name]

    def pictures(self) -> dict[str, Picture]:
        """The pictures, by the results' names."""
        drawn = {result.name: result.picture() for result in self.results}
        return {name: picture for name, picture in drawn.items() if picture is not None}

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON: ``table`` has every row's estimate, ``results`` the whole of each result."""
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
            "thresholds": {name: asdict(threshold) for name, threshold in self.thresholds.items()},
            "provenance": None if self.provenance is None else dict(self.provenance),
        }
        table = {row.name: asdict(row.estimate) for row in self.rows()}
        return {**shared, "table": table, "results": {result.name: result.to_dict() for result in self.results}}

    def to_json(self) -> str:
        """Indented JSON. Raises ``ValueError`` for NaN and infinity, which JSON does not have."""
        return json.dumps(self.to_dict(), indent=2, ensure_ascii=False, allow_nan=False) + "\n"

    def to_text(self) -> str:
        """Aligned columns for a terminal, and what was left out."""
        blank = ("",) * len(COLUMNS)  # between results
        lines: list[tuple[str, ...]] = [COLUMNS]
        for result in self.results:
            lines += [*([blank] if len(lines) > 1 else []), *(_cells(row) for row in result.rows)]
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
    """Measure a text model by :data:`~fewstep.evaluation.measurements.MEASUREMENTS`, or by those named in ``only``.

    ``only`` may name measurements outside the package by dotted paths; without it, those are left out that the model
    lacks parts for. A figure depends on the subject alone, not on what else is measured, so several ``processes`` share
    the work. ``data`` names the text, for the protocol. Raises ``UserError`` for an unknown name or a missing part.
    """
    parts = subject.generator.model.parts()
    chosen = choose(MEASUREMENTS, only)
    missing = {
        name: ", ".join(part for part in measurement.parts if part not in parts) for name, measurement in chosen.items()
    }
    left_out = {name: lacking for name, lacking in missing.items() if lacking}
    if only is not None and left_out:
        for name in left_out:
            if unknown := [part for part in chosen[name].parts if not hasattr(subject.generator.model, part)]:
                raise UserError(f"measurement {name} needs the part {unknown[0]!r}, which no text model has")
            subject.generator.model.require(*chosen[name].parts, source=f"{model}, asked for {name},")
    chosen = {name: measurement for name, measurement in chosen.items() if name not in left_out}
    return diagnose(
        subject, chosen, model, left_out=left_out, progress=progress, processes=processes, data=data, packages=PACKAGES
    )


def diagnose(
    subject: ReadoutSubject | ImageSubject,
    chosen: Mapping[str, Measurement],
    model: str,
    *,
    left_out: Mapping[str, str] | None = None,
    effort: DabiEffort = FULL,
    progress: Progress | None = None,
    processes: Processes | None = None,
    data: Mapping[str, Any] | None = None,
    packages: tuple[str, ...] = (),
    notes: tuple[str, ...] = (),
) -> Diagnosis:
    """Measure ``subject`` by ``chosen``. ``effort`` of DABI and ``packages`` beside torch are for the protocol."""
    results = run_all(chosen, subject, progress, processes)
    declared = (item for measurement in chosen.values() for item in measurement.thresholds.items())
    names = {row.name for result in results for row in result.rows}
    positions, length = None, None
    if not isinstance(subject, ImageSubject):
        positions, length = subject.positions.shape[1], subject.ids.shape[1]
    protocol = {
        "response": "whole output",  # one token or pixel alone has a ratio of n in any decoder
        "unit": "rms of the latents",
        "radii": list(effort.radii),
        "num_isotropic": effort.num_isotropic,
        "num_probes": effort.num_probes,
        "noise_levels": None if positions is None else list(NOISE_LEVELS),
        "examples": len(subject.z),
        "positions": positions,
        "block_length": length,
        "seed": subject.seed,
        "data": None if data is None else dict(data),
        "versions": versions(*packages),
    }
    return Diagnosis(
        "text" if positions else "images",
        model,
        results,
        subject.z[0].numel(),
        len(subject.z),
        positions,
        subject.seed,
        left_out or {},
        protocol,
        notes,
        thresholds={name: threshold for name, threshold in declared if name in names},
    )


def run_all(
    chosen: Mapping[str, Measurement],
    subject: object,
    progress: Progress | None,
    processes: Processes | None = None,
) -> tuple[Result, ...]:
    """The results of all measurements, in order; ``progress`` is called before each and at the end.

    Several ``processes`` share the measurements: the first returns all results, or raises the ``UserError`` that any of
    them met; the others return none.
    """
    processes = Processes() if processes is None else processes
    share = processes.share(list(enumerate(chosen.items())))
    found: list[tuple[int, tuple[Result, ...], str]] = []
    for done, (place, (name, measurement)) in enumerate(share):
        if progress is not None:
            progress(done, len(share), name)
        try:
            found.append((place, measurement.run(subject), ""))
        except UserError as error:  # gathered from all, or the others would wait
            found.append((place, (), str(error)))
            break
    gathered = sorted(processes.gather(found), key=lambda part: part[0])
    for _, _, problem in gathered:
        if problem:
            raise UserError(problem)
    if progress is not None:
        progress(len(share), len(share), "")
    return tuple(result for _, results, _ in gathered for result in results)


def _cells(row: Row) -> tuple[str, ...]:
    estimate = row.estimate
    value = "undetermined" if estimate.value is None else f"{estimate.value:.4g}"
    interval = "" if estimate.interval is None else f"{estimate.interval.low:.4g} - {estimate.interval.high:.4g}"
    return (row.name, value, interval, row.unit, str(estimate.num_examples), row.note)
