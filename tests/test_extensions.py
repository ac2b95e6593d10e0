"""The five recipes of CONTRIBUTING.md: a file and a YAML from outside the package, trained, then found everywhere."""

import importlib
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fewstep.cli.main import main
from tests.runs import ROOT, Workshop, logged

BLOCK = re.compile(r"```(?:python|yaml)\n# (my_ext/\S+)\n(.*?)```", re.DOTALL)
RULE = "my_ext.rule.pulse:0.5"
OBJECTIVE, ENCODER, READOUT = "my_ext.objective.Noisy", "my_ext.encoder.Embeddings", "my_ext.readout.Nearest"
MEASUREMENT = "my_ext.measure.latent_norm"
FEW = ["--device", "cpu", "--allow", "my_ext"]


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder with the package of the recipes, importable."""
    folder = tmp_path_factory.mktemp("outside")
    blocks = dict(BLOCK.findall((ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")))
    assert len(blocks) == 10
    for name, text in {"my_ext/__init__.py": "", **blocks}.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    sys.path.insert(0, str(folder))
    importlib.invalidate_caches()
    yield folder
    sys.path.remove(str(folder))
    for name in [name for name in sys.modules if name.partition(".")[0] == "my_ext"]:
        del sys.modules[name]


def fit(workshop: Workshop, package: Path, stage: str, name: str, *flags: str) -> Path:
    """Train two steps of a stage with the YAML files of the recipes ``name``; returns the run folder."""
    run = package / stage
    configs = [word for recipe in name.split(",") for word in ("--config", str(package / "my_ext" / f"{recipe}.yaml"))]
    diagnostics = [] if "latent_norm" in name else ["--diagnostics.every_n_validations=0"]
    arguments = workshop.arguments(stage, f"--run_dir={run}", *flags, steps=2)
    place = next(i for i, word in enumerate(arguments) if word.startswith("--data."))
    arguments = [*arguments[:place], *configs, *arguments[place:]]
    quiet = [word for word in arguments if not word.startswith("--diagnostics.")]
    assert main(["train", *quiet, *diagnostics]) == 0
    return run


@pytest.fixture(scope="module")
def model(workshop: Workshop, package: Path) -> Path:
    """A model of all stages: encoder and readout from outside, a flow trained by the objective from outside."""
    base = fit(workshop, package, "autoencoder", "embeddings,nearest") / "model"
    allowed = [f"--model.autoencoder={base}", '--model.allow=["my_ext"]']
    flow = fit(workshop, package, "flow", "noisy,pulse,latent_norm", *allowed) / "model"
    scorer = package / "language_model"
    tokenizer = f"--data.tokenizer={base / 'tokenizer'}"
    assert main(["train", *workshop.arguments("language_model", f"--run_dir={scorer}", tokenizer, steps=2)]) == 0
    assert main(["convert", str(flow), str(scorer / "model"), str(package / "whole"), "--allow", "my_ext"]) == 0
    return package / "whole"


def test_training_logs_what_came_from_outside(model: Path, package: Path) -> None:
    log = logged(package / "flow")
    assert len(log["train/loss"]) == 2
    assert log["diag/latent_norm"]
    assert (package / "flow" / "samples.jsonl").read_text().count("\n") >= 1
    config = json.loads((model / "config.json").read_text())
    assert config["identity"]["objective"] == OBJECTIVE
    assert config["parts"]["autoencoder"]["class_path"] == ENCODER
    assert config["parts"]["readout"]["class_path"] == READOUT


def test_samples_use_them(model: Path, package: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = package / "samples.jsonl"
    few = ["--num_samples", "2", "--steps", "2", "--output", str(output)]
    assert main(["sample", str(model), *few, "--reinjection", RULE, *FEW]) == 0
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert [row["reinjection"] for row in rows] == [RULE] * 2
    capsys.readouterr()
    assert main(["sample", str(model), "--num_samples", "1", "--device", "cpu"]) == 2
    assert "--allow my_ext" in capsys.readouterr().err


def test_a_sweep_has_a_row_for_the_rule(model: Path, workshop: Workshop, package: Path) -> None:
    out, cache = package / "evaluation", str(workshop.folder / "cache")
    few = ["--steps", "2", "--readout", "parallel", "--samples", "4", "--seeds", "1", "--cache_dir", cache]
    assert main(["evaluate", str(model), *few, "--reinjection", "0", RULE, "--out", str(out), *FEW]) == 0
    rows = [json.loads(line) for line in (out / "rows.jsonl").read_text().splitlines()]
    assert {"0", RULE} <= {row["setting"].get("reinjection") for row in rows}


def test_a_diagnosis_has_the_measurement(model: Path, workshop: Workshop, package: Path) -> None:
    out, cache = package / "diagnosis", str(workshop.folder / "cache")
    few = ["--examples", "4", "--positions", "1", "--cache_dir", cache, "--out", str(out)]
    assert main(["diagnose", str(model), "--only", f"noise_robustness,{MEASUREMENT}", *few, *FEW]) == 0
    assert "latent_norm" in json.loads((out / "diagnostics.json").read_text())["table"]
