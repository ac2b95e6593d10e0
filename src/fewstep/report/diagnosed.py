"""Figures and curves of a diagnosis, read from its JSON: by ``fewstep diagnose``, or by the callbacks of training."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fewstep.diagnostics import Estimate, Series
from fewstep.diagnostics.curves import estimate_series
from fewstep.report.strict_json import Node

HISTOGRAMS = ("boundary_distance", "boundary_distance_generated")


@dataclass(frozen=True)
class Diagnosed:
    """What one file tells.

    ``origin`` says which, in words; ``table`` has the estimates by their names, ``curves`` the series by theirs (see
    :func:`read_curves`). ``n`` numbers in a latent, ``kind`` "text" or "images", None where the file does not say.
    ``left_out`` names measurements that the model lacks parts for, with those parts. ``protocol`` is what the file says
    of how it was measured, ``notes`` what a reader should know beside. ``num_predictions`` K of the trajectory that
    late flips were counted on.
    """

    origin: str
    table: Mapping[str, Estimate]
    curves: Mapping[str, Series] = field(default_factory=dict)
    n: int | None = None
    kind: str | None = None
    model: str | None = None
    num_examples: int | None = None
    num_positions: int | None = None
    seed: int | None = None
    left_out: Mapping[str, str] = field(default_factory=dict)
    protocol: Mapping[str, Any] | None = None
    notes: tuple[str, ...] = ()
    num_predictions: int | None = None


def read_diagnosis(node: Node) -> Diagnosed:
    """Of ``diagnostics.json``. Raises ``UserError``, naming file and key, for what is not as it should be."""
    kind = node.child("kind")
    if kind.text() not in ("text", "images"):
        kind.refuse("'text' or 'images'")
    results = node.child("results")
    positions = node.child("num_positions")
    protocol = node.child("protocol").value if node.has("protocol") else None
    return Diagnosed(
        origin="fewstep diagnose",
        table=_table(node),
        curves=read_curves(results),
        n=node.child("n").count(),
        kind=kind.text(),
        model=node.child("model").text(),
        num_examples=node.child("num_examples").count(),
        num_positions=None if positions.value is None else positions.count(),
        seed=node.child("seed").whole(),
        left_out={name: parts.text() for name, parts in node.child("left_out").items()},
        protocol=protocol if isinstance(protocol, dict) else None,
        notes=tuple(note.text() for note in node.child("notes").elements()) if node.has("notes") else (),
        num_predictions=_num_predictions(results),
    )


def read_training_line(node: Node, stage: str) -> Diagnosed:
    """Of a line of ``diagnostics.jsonl``, which the training of ``stage`` writes. Raises ``UserError``."""
    results = node.child("results")
    dims = [result.child("n").count() for _, result in results.items() if result.has("n")]
    return Diagnosed(
        origin=f"training of the {stage}, step {node.child('step').count()}",
        table=_table(node),
        curves=read_curves(results),
        n=dims[0] if dims else None,
        num_examples=node.child("num_examples").count(),
        num_positions=node.child("num_positions").count(),
        seed=node.child("seed").whole(),
        num_predictions=_num_predictions(results),
    )


def read_robustness(node: Node) -> Diagnosed:
    """Of ``noise_robustness.json``, which the autoencoder's training writes. Raises ``UserError``."""
    levels, accuracies = node.child("levels").numbers(), node.child("isotropic").estimates()
    if len(levels) != len(accuracies):
        node.child("isotropic").refuse(f"{len(levels)} estimates, one for each of levels")
    table = {f"noise_accuracy_at_{level:g}": one for level, one in zip(levels, accuracies, strict=True)}
    return Diagnosed(
        origin="held-out text after training",
        table=table,
        curves=_robustness(node),
        n=node.child("n").count(),
        num_examples=accuracies[0].num_examples if accuracies else None,
    )


def read_curves(results: Node) -> dict[str, Series]:
    """The series that a page draws.

    "boundary_distance", "boundary_distance_generated": density over rms; "tube_mass", "tube_flips", "tube_isotropic":
    share over the noise scale s, and "tube_mass_over_time"; "robustness", "robustness_aligned": accuracy over rms;
    "commitment" over t; "commit_step": share over steps; "stiffness" over t; "cci": over noise.
    """
    curves: dict[str, Series] = {}
    for name in HISTOGRAMS:
        if results.has(name):
            curves[name] = _density(results.child(name).child("histogram"))
    if results.has("tube"):
        curves |= _tube(results.child("tube"))
    if results.has("noise_robustness"):
        curves |= _robustness(results.child("noise_robustness"))
    for name in ("commitment", "stiffness"):
        if results.has(name):
            found = results.child(name)
            curves[name] = _line(name, found.child("times"), found.child("values").estimates())
    if results.has("commit_step"):
        shares = results.child("commit_step").child("shares").numbers()
        curves["commit_step"] = Series("commit_step", tuple(map(float, range(1, len(shares) + 1))), shares)
    if results.has("cci_noise"):
        found = results.child("cci_noise")
        estimates = [one.child("cci").estimate() for one in found.child("results").elements()]
        curves["cci"] = _line("cci", found.child("levels"), estimates)
    return curves


def _table(node: Node) -> dict[str, Estimate]:
    return {name: one.estimate() for name, one in node.child("table").items()}


def _num_predictions(results: Node) -> int | None:
    if not results.has("late_flip_rate"):
        return None
    return results.child("late_flip_rate").child("num_predictions").count()


def _density(histogram: Node) -> Series:
    """Shares of bars of different widths do not compare; their densities do."""
    x, y = histogram.child("x").numbers(), histogram.child("y").numbers()
    if len(x) != len(y):
        histogram.child("y").refuse(f"{len(x)} numbers, one for each of x")
    width = x[1] - x[0] if len(x) > 1 else 1.0
    return Series("density", x, tuple(value / width for value in y) if width > 0 else y)


def _tube(node: Node) -> dict[str, Series]:
    scales, masses = node.child("noise_scales"), node.child("tube_masses").estimates()
    return {
        "tube_mass": _line("tube mass T(c s)", scales, masses),
        "tube_flips": _line("flips, posterior mean", scales, node.child("flip_rates").estimates()),
        "tube_isotropic": _line("flips, isotropic noise", scales, node.child("isotropic_flip_rates").estimates()),
        "tube_mass_over_time": _line("tube mass", node.child("times"), masses),
    }


def _robustness(node: Node) -> dict[str, Series]:
    levels = node.child("levels")
    curves = {"robustness": _line("isotropic noise", levels, node.child("isotropic").estimates())}
    if node.has("aligned") and node.child("aligned").elements():  # training measures it for no position
        curves["robustness_aligned"] = _line("towards the next token", levels, node.child("aligned").estimates())
    return curves


def _line(label: str, x: Node, estimates: list[Estimate]) -> Series:
    places = x.numbers()
    if len(places) != len(estimates):
        x.refuse(f"{len(estimates)} numbers, one for each estimate")
    return estimate_series(label, places, estimates)
