"""Hook of mkdocs.yml: the pages under reference/api, one per room, with every public module that is there.

The pages are made at build time, so that a module that moves needs no change in docs/.
"""

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

SRC = Path(__file__).parents[1] / "src"
ROOMS = {
    "models": ("TextGenerator and SavedModel", ["pipeline", "model"]),
    "types": ("Types, schedules and paths", ["types", "schedules", "paths", "registry", "errors"]),
    "autoencoders": ("Autoencoders: tokens to latents", ["autoencoders"]),
    "denoisers": ("Denoisers: x_t to the clean estimate", ["denoisers"]),
    "readouts": ("Readouts: latents to tokens", ["readouts"]),
    "samplers": ("Samplers and re-injection: noise to latents", ["samplers"]),
    "objectives": ("Objectives: losses", ["objectives"]),
    "data": ("Data: sources, tokenizer, packing, batches", ["data"]),
    "diagnostics": ("Diagnostics: functions of callables and tensors", ["diagnostics"]),
    "metrics": ("Metrics: numbers about texts and images, intervals", ["metrics"]),
    "evaluation": ("Evaluation: sweeps, scorers, diagnosis", ["evaluation"]),
    "training": ("Training: Lightning modules, data modules, callbacks", ["training"]),
    "adapters": ("Adapters: decoders of other packages", ["lab/adapters"]),
    "images": ("Images, the control", ["lab/images"]),
}


def modules(place: str) -> list[str]:
    """Dotted names of a module, or of all modules of a package that have public names of their own."""
    path = SRC / "fewstep" / place
    files = sorted(path.rglob("*.py")) if path.is_dir() else [path.with_suffix(".py")]
    names = [".".join(file.relative_to(SRC).with_suffix("").parts) for file in files]
    return [name for name in names if not name.rpartition(".")[2].startswith("_") and not name.endswith(".command")]


def page(title: str, places: list[str]) -> str:
    """Markdown of a room."""
    names = [name for place in places for name in modules(place)]
    return "\n\n".join([f"# {title}", *(f"::: {name}" for name in names)]) + "\n"


def on_files(files: Files, config: Any) -> Files:
    """Add the pages."""
    lines = ["# Python API", "", "Public names by room, from their docstrings.", "", "| page | modules |", "|---|---|"]
    for name, (title, places) in ROOMS.items():
        files.append(File.generated(config, f"reference/api/{name}.md", content=page(title, places)))
        listed = ", ".join(f"`fewstep.{place.replace('/', '.')}`" for place in places)
        lines.append(f"| [{title}]({name}.md) | {listed} |")
    files.append(File.generated(config, "reference/api/index.md", content="\n".join(lines) + "\n"))
    return files


def on_page_content(html: str, **_: Any) -> str:
    """Drop the roles of Sphinx (``:class:`` and the like) that docstrings put before a name."""
    return re.sub(r":(?:class|func|meth|mod|data):(?=<code>)", "", html)
