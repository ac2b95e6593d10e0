"""The table of readout sharpness in the README, from the JSON of several diagnoses.

    fewstep diagnose runs/quickstart/model
    fewstep diagnose runs/digits/model
    fewstep diagnose runs/shapes/model
    python benchmarks/sharpness.py runs/quickstart runs/digits runs/shapes

Whole-output response, DABI_0 raw and as a fraction of n, with 95 % intervals over examples.
"""

import argparse
import json
from pathlib import Path
from typing import Any

LINES = {
    "text": {
        "dabi": "boundary next to data, normal",
        "dabi_segment": "boundary on a segment between data, along the segment",
        "dabi_worst": "the same points, worst direction",
        "dabi_data": "data, normal",
        "dabi_generated": "boundary next to generated latents, normal",
        "dabi_head": "commitment head, boundary next to data, normal",
    },
    "images": {
        "dabi_segment": "middle of a segment between data, along the segment",
        "dabi_worst": "the same points, worst direction",
        "dabi_data_segment": "data, towards another image",
    },
}


def table(name: str, diagnosis: dict[str, Any]) -> list[str]:
    """Markdown lines of one model."""
    rows = []
    for key, what in LINES[diagnosis["kind"]].items():
        if (one := diagnosis["results"].get(key)) is None:
            continue
        figures = (one["dabi"], one["dabi_fraction"], one["at_radius"][0]["value"])
        points = f"{one['accepted']:.0%} of {one['num_points']}"
        rows.append(f"| {name} | {what} | {one['n']} | {' | '.join(map(shown, figures))} | {points} |")
    return rows


def shown(estimate: dict[str, Any]) -> str:
    """A value with its interval, three digits."""
    if estimate["value"] is None:
        return "undetermined"
    interval = estimate["interval"]
    return f"{estimate['value']:.3g} ({interval['low']:.3g} - {interval['high']:.3g})"


def main() -> None:
    """Print one Markdown table of the folders that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="+", help="folders of runs that were diagnosed")
    args = parser.parse_args()
    rows = ["| decoder | points, direction | n | DABI_0 | DABI_0 / n | DABI at 0.001 | points |", "|" + "---|" * 7]
    for folder in args.folders:
        diagnosis = json.loads((folder / "diagnosis" / "diagnostics.json").read_text(encoding="utf-8"))
        kind = "text" if diagnosis["kind"] == "text" else f"images, {folder.name}"
        rows += table(kind, diagnosis)
    print("\n".join(rows))


if __name__ == "__main__":
    main()
