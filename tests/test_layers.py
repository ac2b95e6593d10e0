"""Imports go strictly downward, heavy libraries stay in their rooms, and a command loads only what it needs."""

import ast
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.bundles import tiny_bundle
from tests.runs import ROOT, Workshop

PACKAGE = ROOT / "src" / "fewstep"

# From the ground up. A room may import rooms of lower lines only; rooms of one line do not know each other.
LAYERS = [
    {"errors"},
    {"shapes", "registry", "locking"},
    {"types"},
    {"schedules", "metrics"},
    {"paths"},
    {"diagnostics"},
    {"nn"},
    {"autoencoders", "denoisers", "readouts"},
    {"objectives", "samplers", "data"},
    {"storage", "provenance", "settings"},
    {"model", "prompts"},
    {"writing"},
    {"pipeline"},
    {"evaluation"},
    {"training"},
    {"cli"},
    {"lab"},
    {"__main__"},
]
LAYER_OF = {room: height for height, rooms in enumerate(LAYERS) for room in rooms}
PURE_ROOMS = set().union(*LAYERS[: LAYERS.index({"diagnostics"}) + 1]) - {"locking"}
FACADE = {"TextGenerator": "pipeline"}  # names that `fewstep` itself lends from a room


# library -> the rooms that may import it
HOME_OF = {
    "lightning": {"training"},
    "pytorch_lightning": set(),
    "wandb": {"training"},
    "matplotlib": {"evaluation", "lab"},
    "sklearn": {"lab"},
    "diffusers": {"lab"},
    **{name: set(LAYER_OF) - PURE_ROOMS for name in ("os", "pathlib", "io", "transformers", "tokenizers", "datasets")},
}
HEAVY = ["torch", "lightning", "transformers", "datasets", "wandb", "matplotlib", "sklearn", "scipy", "jsonargparse"]


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
    """What the imports of ``source``, taken as the module of that dotted name, break."""
    parts = module.split(".")
    room = parts[1]
    if room not in LAYER_OF:
        return [f"{module}: {room} is in no layer; add it to LAYERS and to CONTRIBUTING.md"]
    problems = []
    for line, name in imported_names(ast.parse(source), parts, is_package):
        top, *rest = name.split(".")
        target = FACADE.get(rest[0], rest[0]) if rest else None
        if top != "fewstep" and room not in HOME_OF.get(top, LAYER_OF):
            problems.append(f"{module}:{line}: {room} must not import {top}")
        elif top != "fewstep" or target not in LAYER_OF or target == room:
            continue
        elif LAYER_OF[target] >= LAYER_OF[room]:
            problems.append(f"{module}:{line}: {room} must not import {target}, which is not below it")
    return list(dict.fromkeys(problems))  # one line for `from a import b, c`


def modules() -> Iterator[tuple[str, bool, Path]]:
    """Dotted name, whether it is a package, and file of every module but the facade ``fewstep`` itself."""
    for file in sorted(PACKAGE.rglob("*.py")):
        parts = ["fewstep", *file.relative_to(PACKAGE).with_suffix("").parts]
        is_package = parts[-1] == "__init__"
        name = ".".join(parts[:-1] if is_package else parts)
        if name != "fewstep":
            yield name, is_package, file


def test_imports_go_strictly_downward_and_libraries_stay_in_their_rooms() -> None:
    problems = [line for name, is_package, file in modules() for line in violations(file.read_text(), name, is_package)]
    assert not problems, "\n".join(problems)


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("fewstep.nn.blocks", "from fewstep.denoisers import transformer"),
        ("fewstep.schedules", "from .paths import linear_path"),
        ("fewstep.samplers.ode", "from fewstep import TextGenerator"),
        ("fewstep.objectives.flow", "def later():\n    from fewstep.data import corpus"),
        ("fewstep.cli.sample", "from lightning.pytorch.cli import LightningCLI"),
        ("fewstep.metrics.text", "from pathlib import Path"),
        ("fewstep.pipeline", "from fewstep.lab.adapters import text"),
        ("fewstep.cli.diagnose", "from fewstep.lab import adapters"),
        ("fewstep.attic", "import torch"),
    ],
)
def test_a_planted_violation_fails(module: str, source: str) -> None:
    assert len(violations(source, module)) == 1


HELP = """
import contextlib, sys, time
from fewstep.cli.main import COMMANDS, main
main(["--help"])
assert time.process_time() < 0.3, "seconds of CPU of fewstep --help"
for name in COMMANDS:
    if name != "train":
        with contextlib.suppress(SystemExit):
            main([name, "--help"])
"""


@pytest.mark.parametrize("statement", ["import fewstep", HELP])
def test_importing_fewstep_and_asking_for_help_load_no_heavy_library(statement: str) -> None:
    heavy = HEAVY if statement != HELP else [name for name in HEAVY if name != "jsonargparse"]
    script = f"import sys\n{statement}\nprint('loaded:', *(name for name in {heavy} if name in sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1].strip() == "loaded:"


# Runs a command and writes the modules of ours that it loaded, and the files of which it executed a function.
TRACED = """
import json, sys, threading
root, report, traces, *argv = sys.argv[1:]
executed = set()
def trace(frame, event, argument):
    code = frame.f_code
    if code.co_filename.startswith(root) and code.co_flags & 1:  # 1: the body of a function
        while (frame := frame.f_back) is not None:
            if frame.f_code.co_name == "<module>" and frame.f_code.co_filename.startswith(root):
                return  # while a module is imported
        executed.add(code.co_filename.removeprefix(root))
from fewstep.cli.main import main
if traces:
    import datasets, lightning.pytorch.cli, torch._dynamo, transformers, wandb  # which a trace would slow down
    from transformers import PreTrainedTokenizerFast
    threading.settrace(trace)
    sys.settrace(trace)
code = main(argv)
sys.settrace(None)
loaded = sorted(name for name in sys.modules if name.partition(".")[0] == "fewstep")
with open(report, "w") as stream:
    json.dump({"executed": sorted(executed), "loaded": loaded}, stream)
sys.exit(code)
"""


def traced(report: Path, *argv: str, executed: bool) -> dict[str, list[str]]:
    """The modules that a command loads and, where asked for, the files that it executes. A warning is an error."""
    command = [sys.executable, "-W", "error", "-c", TRACED, f"{PACKAGE}/", str(report), "x" * executed, *argv]
    done = subprocess.run(
        command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, cwd=ROOT, timeout=300
    )
    assert done.returncode == 0 and "Warning" not in done.stderr, done.stderr
    return json.loads(report.read_text())


@pytest.fixture(scope="module")
def fit(workshop: Workshop, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """A fit of two steps of the flow."""
    folder = tmp_path_factory.mktemp("fit")
    arguments = workshop.arguments("flow", f"--run_dir={folder / 'run'}", steps=2)
    return traced(folder / "trace.json", "train", *arguments, executed=True)


def test_a_fit_of_text_loads_at_most_90_modules(fit: dict[str, list[str]]) -> None:
    assert len(fit["loaded"]) <= 90, "\n".join(fit["loaded"])


def test_a_fit_of_text_executes_at_most_40_files(fit: dict[str, list[str]]) -> None:
    assert len(fit["executed"]) <= 40, "\n".join(fit["executed"])


def test_sampling_loads_at_most_45_modules(tmp_path: Path) -> None:
    tiny_bundle().save_pretrained(tmp_path / "model")
    options = ["--num_samples", "1", "--steps", "2", "--device", "cpu", "--readout", "parallel"]
    loaded = traced(tmp_path / "trace.json", "sample", str(tmp_path / "model"), *options, executed=False)["loaded"]
    assert len(loaded) <= 45, "\n".join(loaded)
