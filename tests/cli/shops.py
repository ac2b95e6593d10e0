"""A tiny text with a model on it, and what commands write of them."""

import json
from pathlib import Path
from typing import Any

from tests.bundles import tiny_bundle, with_identity
from tests.runs import write_text

FEW = ["--steps", "1,3", "--reinjection", "0,1", "--readout", "parallel,head", "--samples", "5", "--seeds", "2"]


def make_shop(folder: Path) -> Path:
    """Write the text and the model; returns the folder."""
    source = write_text(folder / "text.jsonl")
    with_identity(tiny_bundle(), source=str(source)).save_pretrained(folder / "model")
    return folder


def evaluation(shop: Path, out: Path | None, *options: str | Path, model: Path | None = None) -> list[str]:
    """``evaluate`` of the shop's model or ``model`` in few settings; ``options`` come last."""
    machine = ["--cache_dir", str(shop / "cache"), "--device", "cpu", "--batch_size", "2", "--cci_examples", "2"]
    place = [] if out is None else ["--out", str(out)]
    return [
        "evaluate",
        str(model or shop / "model"),
        *FEW,
        *machine,
        "--matched_entropy",
        "1",
        *place,
        *map(str, options),
    ]


def diagnosis(shop: Path, out: Path, *options: str) -> list[str]:
    """The quick measurements of ``diagnose``."""
    few = ["--examples", "4", "--positions", "1", "--only", "dabi", "--device", "cpu"]
    return ["diagnose", str(shop / "model"), *few, "--cache_dir", str(shop / "cache"), "--out", str(out), *options]


def rows_in(file: Path) -> list[dict[str, Any]]:
    """The rows of a JSONL file, which must all be whole."""
    text = file.read_text(encoding="utf-8")
    assert text.endswith("\n")
    return [json.loads(line) for line in text.splitlines()]


def timeless(row: dict[str, Any]) -> dict[str, Any]:
    """What another run must find too."""
    kept = {name: value for name, value in row.items() if "second" not in name and name != "provenance"}
    if "values" in kept:  # of a row
        kept["values"] = {name: value for name, value in kept["values"].items() if "second" not in name}
    return kept
