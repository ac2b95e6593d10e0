"""Reading of runs: what is missing is empty, and what a run has is found wherever it stands."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from fewstep.errors import UserError
from fewstep.lab.report.figures import figures_of
from fewstep.lab.report.run import read_run, read_runs
from fewstep.storage import Manifest, PartSpec
from tests.lab.report.runs_on_disk import MadeDiagnosis, sweep_row, sweep_rows, whole_run, write_run


def test_a_whole_run_is_read_with_all_its_parts(tmp_path: Path) -> None:
    run = read_run(whole_run(tmp_path / "mine"))
    assert (run.name, run.kind) == ("mine", "text")
    assert list(run.rows) == sweep_rows()
    (flow,) = run.stages
    train, held_out = flow.curves
    assert (train.x, train.y) == ((10.0, 20.0), (0.9, 0.7))
    assert (held_out.x, held_out.y, flow.last) == ((20.0,), (0.8,), {"val/loss": 0.8})


def test_a_diagnosis_alone_is_a_run_by_file_and_by_folder(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "other", diagnosis=MadeDiagnosis()) / "diagnosis"
    for path in (folder, folder / "diagnostics.json"):
        run = read_run(path)
        assert run.name == "other"
        assert figures_of(run)["cci"] == 0.3
    for name in ("paper/diagnostics.json", "sent_in.json"):
        file = tmp_path / "mine" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes((folder / "diagnostics.json").read_bytes())
        assert read_run(file).name == ("sent_in" if name == "sent_in.json" else "mine")
    assert figures_of(read_run(tmp_path / "mine"))["cci"] == 0.3


def test_the_model_is_known_by_its_manifest_and_the_headers_of_its_weights(tmp_path: Path) -> None:
    model = tmp_path / "run" / "model"
    model.mkdir(parents=True)
    parts = {"denoiser": {"class_path": "fewstep.D", "init_args": {}}}
    values = {"format": 2, "identity": {"kind": "text", "block_size": 8}, "parts": parts, "sha256": {}}
    (model / "config.json").write_text(json.dumps(values))
    save_file({"a": torch.zeros(2, 3), "b": torch.zeros(5), "c": torch.zeros(())}, model / "denoiser.safetensors")
    run = read_run(tmp_path / "run")
    assert run.manifest == Manifest(values["identity"], {"denoiser": PartSpec("fewstep.D", {})})
    assert (run.kind, run.sizes) == ("text", {"denoiser": 12})
    with pytest.raises(UserError, match="is a model: give the run's folder"):
        read_run(model)


def test_resumed_logs_continue_and_losses_that_are_not_finite_are_left_out(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", logs=True)
    later = folder / "flow" / "csv" / "version_1" / "metrics.csv"
    later.parent.mkdir()
    later.write_text("epoch,step,train/loss,val/loss\n0,20,0.6,\n0,30,nan,\n0,40,0.5,\n")
    (flow,) = read_run(folder).stages
    assert (flow.curves[0].x, flow.curves[0].y) == ((10.0, 20.0, 40.0), (0.9, 0.6, 0.5))


def test_two_runs_of_one_name_are_numbered_and_the_same_run_twice_is_refused(tmp_path: Path) -> None:
    first, second = (write_run(tmp_path / place / "run", rows=sweep_rows()) for place in ("a", "b"))
    assert [run.name for run in read_runs([str(first), str(second)])] == ["run", "run (2)"]
    with pytest.raises(UserError, match="is given twice"):
        read_runs([str(first), str(second), f"{first}/../run"])


def test_rows_of_two_protocols_are_refused(tmp_path: Path) -> None:
    rows = [*sweep_rows(), sweep_row("parallel", 8, "0", 100.0, protocol={"block_size": 16})]
    with pytest.raises(UserError, match="block_size: 32 against 16"):
        read_run(write_run(tmp_path / "run", rows=rows))
