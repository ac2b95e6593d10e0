"""Figures and curves of a diagnosis, read from the JSON of ``fewstep diagnose`` or of the training callback."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fewstep.diagnostics.result import Axes, Estimate, Result, Row, Series
from fewstep.evaluation.measurement import Threshold
from fewstep.lab.report.strict_json import Node


@dataclass(frozen=True)
class Diagnosed:
    """The content of one file.

    ``origin`` says which, in words; ``table`` has the estimates by row, ``results`` the results by name, as
    :class:`~fewstep.diagnostics.result.Result` describes them, and ``thresholds`` those that measurements declare, by
    row. ``n`` numbers in a latent, ``kind`` "text" or "images", None where the file does not say. ``left_out`` maps
    measurements to the parts that the model lacks for them; ``protocol`` says how it was measured.
    """

    origin: str
    table: Mapping[str, Estimate]
    results: Mapping[str, Result] = field(default_factory=dict)
    thresholds: Mapping[str, Threshold] = field(default_factory=dict)
    n: int | None = None
    kind: str | None = None
    model: str | None = None
    num_examples: int | None = None
    num_positions: int | None = None
    seed: int | None = None
    left_out: Mapping[str, str] = field(default_factory=dict)
    protocol: Mapping[str, Any] | None = None
    notes: tuple[str, ...] = ()

    def curve(self, name: str) -> Series | None:
        """The curve ``RESULT/KEY``, such as "tube/flips"."""
        result, _, key = name.partition("/")
        return self.results[result].curves.get(key) if result in self.results else None

    @property
    def num_predictions(self) -> int | None:
        """K of the trajectory that late flips were counted on."""
        late = self.results.get("late_flip_rate", Result("late_flip_rate"))
        value = late.facts.get("num_predictions")
        return value if isinstance(value, int) else None


def read_diagnosis(node: Node) -> Diagnosed:
    """The content of ``diagnostics.json``. Raises ``UserError`` that names file and key."""
    kind = node.child("kind")
    if kind.text() not in ("text", "images"):
        kind.refuse("'text' or 'images'")
    positions = node.child("num_positions")
    protocol = node.child("protocol").value if node.has("protocol") else None
    thresholds = node.child("thresholds").items() if node.has("thresholds") else ()
    return Diagnosed(
        origin="fewstep diagnose",
        table=_table(node),
        results=_results(node),
        thresholds={name: _threshold(threshold) for name, threshold in thresholds},
        n=node.child("n").count(),
        kind=kind.text(),
        model=node.child("model").text(),
        num_examples=node.child("num_examples").count(),
        num_positions=None if positions.value is None else positions.count(),
        seed=node.child("seed").whole(),
        left_out={name: parts.text() for name, parts in node.child("left_out").items()},
        protocol=protocol if isinstance(protocol, dict) else None,
        notes=tuple(note.text() for note in node.child("notes").elements()) if node.has("notes") else (),
    )


def read_training_line(node: Node, stage: str) -> Diagnosed:
    """The content of a line of ``diagnostics.jsonl``, from the training of ``stage``. Raises ``UserError``."""
    results = _results(node)
    sizes = [result.facts["n"] for result in results.values() if isinstance(result.facts.get("n"), int)]
    return Diagnosed(
        origin=f"training of the {stage}, step {node.child('step').count()}",
        table=_table(node),
        results=results,
        n=sizes[0] if sizes else None,
        num_examples=node.child("num_examples").count(),
        num_positions=node.child("num_positions").count(),
        seed=node.child("seed").whole(),
    )


def _table(node: Node) -> dict[str, Estimate]:
    return {name: estimate.estimate() for name, estimate in node.child("table").items()}


def _results(node: Node) -> dict[str, Result]:
    return {name: _result(name, result) for name, result in node.child("results").items()}


def _result(name: str, node: Node) -> Result:
    return Result(
        name,
        tuple(_row(row) for row in node.child("rows").elements()),
        {key: _series(series) for key, series in node.child("curves").items()},
        _axes(node.child("axes")) if node.has("axes") else None,
        {key: fact.value for key, fact in node.child("facts").items()},
    )


def _row(node: Node) -> Row:
    unit, note = (node.child(key).text() for key in ("unit", "note"))
    return Row(node.child("name").text(), node.child("estimate").estimate(), unit, note)


def _series(node: Node) -> Series:
    x, y = node.child("x").numbers(), node.child("y").numbers()
    bounds = [node.child(key).numbers() if node.has(key) else None for key in ("low", "high")]
    for key, values in zip(("y", "low", "high"), (y, *bounds), strict=True):
        if values is not None and len(values) != len(x):
            node.child(key).refuse(f"{len(x)} numbers, one for each of x")
    return Series(node.child("label").text(), x, y, *bounds)


def _axes(node: Node) -> Axes:
    kind = node.child("kind")
    if kind.value not in ("lines", "bars"):
        kind.refuse("'lines' or 'bars'")
    title, x_label, y_label = (node.child(key).text() for key in ("title", "x_label", "y_label"))
    return Axes(title, x_label, y_label, kind.value, *(bool(node.child(key).value) for key in ("log_x", "log_y")))


def _threshold(node: Node) -> Threshold:
    good, bad = (node.child(key).number() for key in ("good", "bad"))
    reads, why = (node.child(key).text() for key in ("reads", "why"))
    higher, shares = (bool(node.child(key).value) for key in ("higher", "shares"))
    return Threshold(reads, good, bad, higher, why, shares)
