"""The table of decoders, ours and others', under one protocol (docs/adapters.md).

    python benchmarks/decoders.py --out runs/decoders                       # trains four small ones, diagnoses them
    python benchmarks/decoders.py --out runs/decoders --minilm FOLDER --causal FOLDER     # and two pretrained ones
    python benchmarks/decoders.py --out runs/decoders --runs runs/quickstart runs/shapes  # and diagnoses of our own

A T5 and a BART of width 128 learn to copy the built-in speeches, two AutoencoderKL of diffusers learn drawn shapes and
digits, each in a few minutes on one core. What is there already is not made again, so that a run that was cut off goes
on. ``--runs`` takes folders of our own runs, diagnosed by ``fewstep diagnose``.
"""

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from decoders_training import train_bart, train_digits, train_shapes, train_t5
from sharpness import LINES, shown

from fewstep.cli.main import main as fewstep

IMAGES = 64
"""Images that a decoder of images is measured on: they are cheap."""
SMALL: dict[str, tuple[str, Callable[[Path], None], tuple[str, ...]]] = {
    "t5": ("seq2seq", train_t5, ()),
    "bart": ("seq2seq", train_bart, ()),
    "kl-shapes": ("autoencoder-kl", train_shapes, ("--images", "shapes")),
    "kl-digits": ("autoencoder-kl", train_digits, ("--images", "digits")),
}
AUTOREGRESSIVE = "autoregressive readout, boundary next to data, normal"
HEADING = ("decoder", "points, direction", "n", "DABI_0", "DABI_0 / n", "the same at data", "distance p50", "accuracy")


@dataclass(frozen=True)
class Case:
    """A decoder of the table: its name, the folder of its diagnosis, and the command line that makes it."""

    name: str
    folder: Path
    command: tuple[str, ...]


def cases(args: argparse.Namespace) -> list[Case]:
    """All decoders that the command line asks for; the small ones are trained where they are not there."""
    found = []
    for name, (adapter, train, options) in SMALL.items():
        model = args.out / "models" / name
        if not (model / "config.json").is_file():
            train(model)
        examples = IMAGES if adapter == "autoencoder-kl" else args.examples
        found.append(case(args, name, model, adapter, options, examples, args.positions))
    large = (args.large_examples, args.large_positions)
    if args.minilm is not None:
        for readout in ("fitted", "tied"):
            options = ("--readout", readout)
            found.append(case(args, f"minilm, {readout}", args.minilm, "encoder-linear", options, *large))
    if args.causal is not None:
        found.append(case(args, args.causal_name, args.causal, "causal-lm", (), *large))
    return found


def case(
    args: argparse.Namespace, name: str, model: Path, adapter: str, options: tuple[str, ...], examples: int, places: int
) -> Case:
    """One decoder under the shared protocol."""
    folder = args.out / "diagnoses" / name.replace(", ", "-")
    shared = ("--examples", str(examples), "--positions", str(places), "--seed", "0", "--out", str(folder))
    return Case(name, folder, ("diagnose", str(model), "--adapter", adapter, *options, *shared))


def rows(name: str, diagnosis: dict[str, Any]) -> list[str]:
    """Markdown lines of one decoder."""
    results, table = diagnosis["results"], diagnosis["table"]
    at_data = "dabi_data" if diagnosis["kind"] == "text" else "dabi_data_segment"
    lines = []
    for key, what in LINES[diagnosis["kind"]].items():
        if key not in results or key == at_data:
            continue
        one = results[key]
        commits = key == "dabi_head"
        what = AUTOREGRESSIVE if commits else what
        cells = [name, what, str(one["n"]), shown(one["dabi"]), shown(one["dabi_fraction"])]
        cells.append(shown(results[at_data]["dabi_fraction"]) if at_data in results and not commits else "")
        cells.append(value(table, "boundary_distance_p50") if not commits else "")
        cells.append(fidelity(table, commits))
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def fidelity(table: dict[str, Any], commits: bool) -> str:
    """Token accuracy, or the error of reconstruction."""
    if commits:
        return value(table, "token_accuracy_head")
    if "reconstruction_error" in table:
        return f"error {value(table, 'reconstruction_error')}"
    return value(table, "token_accuracy" if "token_accuracy" in table else "noise_accuracy_at_0")


def value(table: dict[str, Any], name: str) -> str:
    """Three digits; nothing where there is no such row."""
    found = table.get(name, {"value": None})["value"]
    return "" if found is None else f"{found:.3g}"


def main() -> None:
    """Train, diagnose and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/decoders"), help="folder for models and diagnoses")
    parser.add_argument("--minilm", type=Path, help="folder of an encoder such as all-MiniLM-L6-v2")
    parser.add_argument("--causal", type=Path, help="folder of a causal language model")
    parser.add_argument("--causal_name", default="smollm2", help="what that is called (default: %(default)s)")
    parser.add_argument("--runs", type=Path, nargs="*", default=[], help="folders of our own runs that were diagnosed")
    parser.add_argument("--examples", type=int, default=16, help="blocks of text (default: %(default)s)")
    parser.add_argument("--positions", type=int, default=2)
    parser.add_argument("--large_examples", type=int, default=8, help="the same for the pretrained ones")
    parser.add_argument("--large_positions", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(1)
    lines = ["| " + " | ".join(HEADING) + " |", "|" + "---|" * len(HEADING)]
    for one in cases(args):
        file = one.folder / "diagnostics.json"
        if not file.is_file() and fewstep(one.command):
            raise SystemExit(f"{one.name} could not be diagnosed: {' '.join(one.command)}")
        lines += rows(one.name, json.loads(file.read_text(encoding="utf-8")))
    for folder in args.runs:
        file = folder / "diagnosis" / "diagnostics.json"
        lines += rows(f"ours, {folder.name}", json.loads(file.read_text(encoding="utf-8")))
    print("\n".join(lines))


if __name__ == "__main__":
    main()
