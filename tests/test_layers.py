"""Imports go strictly downward, and heavy libraries stay in their rooms (the plan is in CONTRIBUTING.md)."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "src" / "fewstep"

# From the ground up. A room may import rooms of lower lines only; rooms of one line do not know each other.
LAYERS = [
    {"errors", "shapes", "typed"},
    {"types", "registry"},
    {"schedules", "metrics"},
    {"paths"},
    {"diagnostics", "theory"},
    {"nn"},
    {"autoencoders", "denoisers", "readouts"},
    {"objectives", "samplers", "data", "weights", "locking"},
    {"storage", "provenance"},
    {"bundle", "image_bundle"},
    {"adapters"},
    {"pipeline", "merging"},
    {"evaluation"},
    {"report"},
    {"training"},
    {"cli"},
]
LAYER_OF = {room: height for height, rooms in enumerate(LAYERS) for room in rooms}
PURE_ROOMS = set().union(*LAYERS[: LAYERS.index({"diagnostics", "theory"}) + 1])
FACADE = {"TextGenerator": "pipeline"}  # names that `fewstep` itself lends from a room

# library -> the rooms that may import it
HOME_OF = {
    "lightning": {"training"},
    "pytorch_lightning": set(),
    "wandb": {"training"},
    "matplotlib": {"report"},
    "sklearn": {"data"},
    "diffusers": {"adapters"},
    **{name: set(LAYER_OF) - PURE_ROOMS for name in ("os", "pathlib", "io", "transformers", "tokenizers", "datasets")},
}


def imported_names(tree: ast.AST, module: list[str], is_package: bool) -> Iterator[tuple[int, str]]:
    """Line and absolute dotted name of every import, those inside functions and relative ones included."""
    package = module if is_package else module[:-1]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*above, *filter(None, [node.module])])
            yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)


def violations(source: str, module: str, is_package: bool = False) -> list[str]:
    """What the imports of ``source``, taken as the module of that dotted name, break; empty when all is well."""
    parts = module.split(".")
    room, found = parts[1], []
    if room not in LAYER_OF:
        return [f"{module}: {room} is in no layer; add it to LAYERS and to CONTRIBUTING.md"]
    for line, name in imported_names(ast.parse(source), parts, is_package):
        top, *rest = name.split(".")
        if top != "fewstep":
            if room not in HOME_OF.get(top, LAYER_OF):
                found.append(f"{module}:{line}: {room} must not import {top}")
            continue
        target = FACADE.get(rest[0], rest[0]) if rest else None
        if target in LAYER_OF and target != room and LAYER_OF[target] >= LAYER_OF[room]:
            found.append(f"{module}:{line}: {room} must not import {target}, which is not below it")
    return list(dict.fromkeys(found))  # one line for `from a import b, c`


def modules() -> Iterator[tuple[str, bool, Path]]:
    """Dotted name, whether it is a package, and file of every module but the facade ``fewstep`` itself."""
    for file in sorted(PACKAGE.rglob("*.py")):
        parts = ["fewstep", *file.relative_to(PACKAGE).with_suffix("").parts]
        is_package = parts[-1] == "__init__"
        name = ".".join(parts[:-1] if is_package else parts)
        if name != "fewstep":
            yield name, is_package, file


def test_imports_go_strictly_downward_and_libraries_stay_in_their_rooms() -> None:
    found = [line for name, is_package, file in modules() for line in violations(file.read_text(), name, is_package)]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("fewstep.nn.blocks", "from fewstep.denoisers import transformer"),
        ("fewstep.nn.blocks", "import fewstep.training.flow"),
        ("fewstep.schedules", "from fewstep import paths"),
        ("fewstep.schedules", "from .paths import linear_path"),
        ("fewstep.shapes", "from fewstep.types import Latents"),
        ("fewstep.data.corpus", "from fewstep import storage"),
        ("fewstep.bundle", "from fewstep import pipeline"),
        ("fewstep.samplers.ode", "from ..pipeline import TextGenerator"),
        ("fewstep.samplers.ode", "from fewstep import TextGenerator"),
        ("fewstep.samplers.ode", "from .. import objectives"),
        ("fewstep.objectives.flow", "def later():\n    from fewstep.data import corpus"),
        ("fewstep.evaluation.score", "import lightning.pytorch as pl"),
        ("fewstep.cli.train", "from lightning.pytorch.cli import LightningCLI"),
        ("fewstep.pipeline", "def later():\n    import wandb"),
        ("fewstep.training.callbacks", "from matplotlib import pyplot"),
        ("fewstep.metrics.text", "from pathlib import Path"),
        ("fewstep.evaluation.score", "from sklearn.datasets import load_digits"),
        ("fewstep.image_bundle", "from fewstep.bundle import ModelBundle"),
        ("fewstep.adapters.text", "from fewstep.evaluation import held_out_blocks"),
        ("fewstep.evaluation.score", "import diffusers"),
        ("fewstep.attic", "import torch"),
    ],
)
def test_a_planted_violation_is_found(module: str, source: str) -> None:
    assert len(violations(source, module)) == 1


def test_relative_imports_in_a_package_file_start_at_the_package_itself() -> None:
    assert violations("from .blocks import Block", "fewstep.nn", is_package=True) == []
    assert len(violations("from ..cli import main", "fewstep.nn", is_package=True)) == 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("fewstep.denoisers.transformer", "import torch\nfrom fewstep.nn import blocks\nfrom ..types import Latents"),
        ("fewstep.training.flow", "import lightning, wandb\nfrom fewstep import TextGenerator"),
        ("fewstep.cli.train", "from fewstep import __version__\nfrom fewstep.training import stages"),
        ("fewstep.report.figures", "import matplotlib.pyplot as plt\nfrom .tables import table"),
    ],
)
def test_the_ways_that_the_plan_allows_pass(module: str, source: str) -> None:
    assert violations(source, module) == []


@pytest.mark.parametrize("statement", ["import fewstep", "from fewstep.cli.main import main; main(['--help'])"])
def test_importing_fewstep_and_asking_for_help_load_no_heavy_library(statement: str) -> None:
    heavy = ["torch", "lightning", "transformers", "datasets", "wandb", "matplotlib", "sklearn"]
    script = f"import sys\n{statement}\nprint('loaded:', *(name for name in {heavy} if name in sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1].strip() == "loaded:"
