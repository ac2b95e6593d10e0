"""Small promises of the commands: numbers, warnings, names that look like paths, and refusals at the start."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from huggingface_hub import HfApi

from fewstep.cli.main import main
from fewstep.data import hub
from fewstep.data.tokenizer import load_tokenizer
from fewstep.denoisers import ESTIMATES
from fewstep.errors import UserError
from fewstep.model import SavedModel
from fewstep.settings import read_yaml, whole_number
from fewstep.storage import locate
from tests.bundles import tiny_bundle, with_identity
from tests.runs import ROOT, Workshop


@pytest.mark.parametrize(
    ("given", "read"),
    [
        ("1e2", 100),
        ("1.5E+3", 1500),
        ("--seed=1e2", None),
        ("'1e2'", "1e2"),
        ("1.0", 1.0),
    ],
)
def test_a_whole_number_may_be_written_with_an_exponent(given: str, read: object, tmp_path: Path) -> None:
    if read is None:
        assert whole_number(given) == "--seed=100"
        return
    (tmp_path / "a.yaml").write_text(f"steps: {given}\nmore: {{at: [{given}]}}\n")
    content = read_yaml(tmp_path / "a.yaml")
    assert content == {"steps": read, "more": {"at": [read]}}
    assert type(content["steps"]) is type(read)


def test_steps_with_an_exponent_train(workshop: Workshop, tmp_path: Path) -> None:
    (tmp_path / "steps.yaml").write_text("trainer: {max_steps: 2e0}\n")
    arguments = [word for word in workshop.arguments("language_model") if "max_steps" not in word]
    arguments += ["--config", str(tmp_path / "steps.yaml"), "--seed_everything=1e1", f"--run_dir={tmp_path / 'run'}"]
    assert main(["train", *arguments]) == 0
    written = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert (written["trainer"]["max_steps"], written["seed_everything"]) == (2, 10)


def test_training_raises_no_warning(workshop: Workshop, tmp_path: Path) -> None:
    arguments = workshop.arguments(
        "flow", f"--run_dir={tmp_path / 'run'}", "--diagnostics.every_n_validations=1", steps=2
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "fewstep", "train", *arguments],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "WANDB_MODE": "disabled"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr


@pytest.mark.parametrize("read", [locate, load_tokenizer, lambda name: hub.check_on_hub("model", name)])
@pytest.mark.parametrize("name", ["runs/typo", "./typo/x", "~/nobody/typo", "a/b/c", "owner/typo.ckpt"])
def test_a_name_that_looks_like_a_path_is_not_asked_of_the_hub(
    read: Callable[[str], object], name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def asked(*_: object, **__: object) -> None:
        raise AssertionError("the hub was asked")

    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr(HfApi, "model_info", asked)
    monkeypatch.setattr("huggingface_hub.snapshot_download", asked)
    with pytest.raises(UserError):
        read(name)


def test_a_measurement_that_the_stage_cannot_make_is_refused_at_the_start(
    workshop: Workshop, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = [f"--run_dir={tmp_path / 'run'}", "--diagnostics.measurements=[cci]"]
    assert main(["train", *workshop.arguments("autoencoder", *flags)]) == 2
    assert "diagnostics.measurements: cci needs head" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


OBJECTIVE = """
from typing import ClassVar
from fewstep.denoisers import EstimateKind
from fewstep.objectives import Objective
class Own(Objective):
    estimate: ClassVar[EstimateKind] = EstimateKind("own_estimate", has_velocity=False)
"""


def test_the_estimate_of_another_package_comes_with_its_permission(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_package").mkdir()
    (tmp_path / "own_package" / "__init__.py").write_text("")
    (tmp_path / "own_package" / "objective.py").write_text(OBJECTIVE)
    monkeypatch.syspath_prepend(str(tmp_path))
    model = with_identity(tiny_bundle(), estimate="own_estimate", objective="own_package.objective.Own")
    model.save_pretrained(tmp_path / "model")
    with pytest.raises(UserError, match="--allow"):
        SavedModel.from_pretrained(tmp_path / "model")
    try:
        assert SavedModel.from_pretrained(tmp_path / "model", allow=["own_package"]).identity.estimate == "own_estimate"
    finally:
        ESTIMATES.pop("own_estimate", None)


def test_a_run_folder_that_vanishes_is_one_line(
    workshop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run, save = tmp_path / "run", torch.save

    def vanish(*arguments: object, **options: object) -> None:
        save(*arguments, **options)
        for folder in sorted(run.rglob("*"), reverse=True):
            folder.rmdir() if folder.is_dir() else folder.unlink()

    monkeypatch.setattr(torch, "save", vanish)
    assert (
        main(["train", *workshop.arguments("language_model", f"--run_dir={run}", "--checkpoint.every_n_steps=1")]) == 2
    )
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("fewstep")]
    assert len(errors) == 1 and str(run) in errors[0]


def test_a_row_whose_command_is_no_utf_8_is_read_back(tmp_path: Path) -> None:
    from fewstep.evaluation.protocol import hash_of
    from fewstep.evaluation.rows import Row, RowFile

    file = RowFile(tmp_path / "rows.jsonl")
    file.append(Row({"name": "flow"}, {}, 1, (0,), "m", hash_of({}), {}, 1, "cpu", provenance={"argv": "a\udc80 é"}))
    assert [row.provenance for row in file.read()] == [{"argv": "a? é"}]
