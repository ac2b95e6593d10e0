"""A whole diagnosis: the measurements that a subject allows, as a table, JSON and pictures."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from fewstep.diagnostics.dabi import RADII
from fewstep.diagnostics.result import Picture, Result, Row
from fewstep.errors import UserError
from fewstep.evaluation.columns import aligned_columns
from fewstep.evaluation.measurement import EffortName, Measurement, Threshold, choose
from fewstep.evaluation.measurements import MEASUREMENTS, NOISE_LEVELS, NUM_ISOTROPIC, NUM_PROBES
from fewstep.evaluation.processes import Processes, Progress
from fewstep.evaluation.subject import Subject
from fewstep.provenance import versions

PAPER_MEASUREMENTS = ("token_accuracy", "reconstruction", "dabi", "first_failure", "cci")
PAPER_EXAMPLES = 512
"""The protocol "paper", of figures that people compare between decoders: held-out examples, or all where the data has
fewer, and one position in each."""


@dataclass(frozen=True)
class Diagnosis:
    """``results`` by name in the order of the table, and how they were measured.

    ``kind`` "text" or "images"; ``n`` numbers in one latent; ``left_out`` maps the measurements that the model lacks
    parts for to those parts; ``protocol`` is what two diagnoses must share for their rows to compare; ``notes`` are for
    the reader; ``thresholds`` those of the measurements, by row; ``provenance``: code, versions, command and machine.
    """

    kind: Literal["text", "images"]
    model: str
    results: dict[str, Result]
    n: int
    num_examples: int
    num_positions: int | None
    seed: int
    left_out: dict[str, str]
    protocol: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    thresholds: dict[str, Threshold] = field(default_factory=dict)
    provenance: dict[str, Any] | None = None

    def rows(self) -> tuple[Row, ...]:
        """Every line of the table."""
        return tuple(row for result in self.results.values() for row in result.rows)

    def pictures(self) -> dict[str, Picture]:
        """The pictures, by the results' names."""
        drawn = {name: result.picture() for name, result in self.results.items()}
        return {name: picture for name, picture in drawn.items() if picture is not None}

    def to_json(self) -> str:
        """Indented JSON: the fields, and every row's estimate as ``table``.

        Raises ``ValueError`` for NaN and infinity, which JSON does not have.
        """
        values = asdict(self)
        values["table"] = {row.name: asdict(row.estimate) for row in self.rows()}
        return json.dumps(values, indent=2, ensure_ascii=False, allow_nan=False) + "\n"

    def to_text(self) -> str:
        """Aligned columns for a terminal, and what was left out."""
        lines: list[tuple[str, ...]] = [("diagnostic", "value", "95 % interval", "unit", "examples", "note")]
        for result in self.results.values():
            if len(lines) > 1:
                lines.append(("",) * len(lines[0]))
            lines += map(_cells, result.rows)
        notes = [f"left out: {name}, since the model has no {parts}" for name, parts in self.left_out.items()]
        positions = "" if self.num_positions is None else f", {self.num_positions} positions in each"
        caption = f"{self.num_examples} examples of {self.kind}{positions}; latents of n = {self.n}; seed {self.seed}."
        return "\n".join([aligned_columns(lines, (0, 3, 5)), caption, *notes, *self.notes])


def diagnose(
    subject: Subject,
    *,
    only: Sequence[str] | None = None,
    effort: EffortName = "full",
    protocol: Literal["paper"] | None = None,
    progress: Progress | None = None,
    processes: Processes | None = None,
) -> Diagnosis:
    """Measure ``subject`` by :data:`~fewstep.evaluation.measurements.MEASUREMENTS`, or by those named in ``only``.

    ``only`` may name measurements outside the package by dotted paths; without it, those are left out that the model
    lacks parts for. ``protocol`` "paper" takes :data:`PAPER_MEASUREMENTS`, and notes where the subject has fewer
    examples than it asks for. A figure depends on the subject and the effort alone, not on what else is measured, so
    several ``processes`` share the work. Raises ``UserError`` for an unknown name or a missing part.
    """
    offered = {
        name: item
        for name, item in MEASUREMENTS.items()
        if item.kind in (None, subject.kind) and (protocol is None or name in PAPER_MEASUREMENTS)
    }
    chosen, left_out = choose(offered, only), {}
    for name, item in list(chosen.items()):
        if missing := [part for part in item.parts if part not in subject.parts]:
            if only is not None:
                _refuse(subject, name, missing)
            left_out[name] = ", ".join(missing)
            del chosen[name]
    results = {result.name: result for result in run_all(chosen, subject, effort, progress, processes)}
    notes = list(subject.notes)
    if protocol is not None and len(subject.z) < PAPER_EXAMPLES:
        notes.append(
            f"protocol {protocol}: {len(subject.z)} examples, the data has no more; it asks for {PAPER_EXAMPLES}"
        )
    names = {row.name for result in results.values() for row in result.rows}
    declared = (item for measurement in chosen.values() for item in measurement.thresholds.items())
    return Diagnosis(
        subject.kind,
        subject.name,
        results,
        subject.z[0].numel(),
        len(subject.z),
        subject.positions.shape[1] or None,
        subject.seed,
        left_out,
        {"name": protocol, **_protocol(subject, effort)},
        tuple(notes),
        {name: threshold for name, threshold in declared if name in names},
    )


def _refuse(subject: Subject, name: str, missing: Sequence[str]) -> None:
    model = subject.model
    if model is None or not all(hasattr(model, part) for part in missing):  # no stage trains that
        raise UserError(f"{subject.name} has no {', '.join(missing)}, which {name} needs: leave it out of --only")
    model.require(*missing, source=f"{subject.name}, asked for {name},")


def _protocol(subject: Subject, effort: EffortName) -> dict[str, Any]:
    """What two diagnoses must share for their rows to compare, and ``latent_rms``, which is each model's own."""
    is_text = subject.kind == "text"
    return {
        "response": "whole output",  # one token or pixel alone has a ratio of n in any decoder
        "unit": "rms of the latents",
        "whitened": subject.whitened,
        "latent_rms": subject.latent_rms,
        "effort": effort,
        "radii": list(RADII),
        "num_isotropic": NUM_ISOTROPIC[subject.kind],
        "num_probes": NUM_PROBES,
        "noise_levels": list(NOISE_LEVELS) if is_text else None,
        "examples": len(subject.z),
        "positions": subject.positions.shape[1] or None,
        "block_length": subject.data.shape[1] if is_text else None,
        "seed": subject.seed,
        "data": None if subject.source is None else dict(subject.source),
        "versions": versions(*subject.packages),
    }


def run_all(
    chosen: Mapping[str, Measurement],
    subject: Subject,
    effort: EffortName,
    progress: Progress | None,
    processes: Processes | None,
) -> tuple[Result, ...]:
    """The results of all measurements, in order; ``progress`` is called before each and at the end.

    Several ``processes`` share the measurements, and each has all results, or raises the ``UserError`` that one met.
    """
    processes = processes or Processes()
    progress = progress or (lambda done, total, name: None)
    share = processes.share(list(enumerate(chosen.items())))

    def measured() -> Iterator[tuple[int, tuple[Result, ...]]]:
        for done, (place, (name, measurement)) in enumerate(share):
            progress(done, len(share), name)
            yield place, measurement.run(subject, effort)

    gathered = sorted(processes.gather(measured()), key=lambda part: part[0])
    progress(len(share), len(share), "")
    return tuple(result for _, results in gathered for result in results)


def _cells(row: Row) -> tuple[str, ...]:
    estimate = row.estimate
    value = "undetermined" if estimate.value is None else f"{estimate.value:.4g}"
    interval = "" if estimate.interval is None else f"{estimate.interval.low:.4g} - {estimate.interval.high:.4g}"
    return (row.name, value, interval, row.unit, str(estimate.num_examples), row.note)
