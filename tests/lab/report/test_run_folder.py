"""Reading of runs: what is missing is told as missing, what is broken is refused in one line with file and key."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from fewstep.errors import UserError
from fewstep.lab.report.blocks import overlay
from fewstep.lab.report.evidence import Evidence
from fewstep.lab.report.run_folder import read_run, read_runs
from fewstep.storage import Manifest, PartSpec
from tests.lab.report.runs_on_disk import (
    PROTOCOL,
    MadeDiagnosis,
    estimate,
    quickstart_table,
    sweep_row,
    sweep_rows,
    whole_run,
    write_run,
)


def test_a_whole_run_is_read_with_all_its_parts(tmp_path: Path) -> None:
    run = read_run(whole_run(tmp_path / "mine"))
    assert (run.name, run.kind, run.block_size) == ("mine", "text", 32)
    assert list(run.rows) == sweep_rows()
    assert run.table == quickstart_table()
    (flow,) = run.stages
    train, held_out = flow.curves
    assert (train.x, train.y) == ((10.0, 20.0), (0.9, 0.7))
    assert (held_out.x, held_out.y, flow.last) == ((20.0,), (0.8,), {"val/loss": 0.8})
    bars = Evidence(run).curve("boundary_distance/histogram")
    assert bars is not None
    assert sum(bars.y) == pytest.approx(1.0)
    picture = overlay([Evidence(run)], {"boundary_distance/histogram": "data"}, "", "", "", density=True)
    assert picture is not None
    assert sum(picture.series[0].y) * 0.5 == pytest.approx(1.0)  # shares of bars of width 0.5, as a density


def test_what_a_run_lacks_is_none(tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path / "bare", table=quickstart_table()))
    assert (run.manifest, run.sizes, run.diagnoses, run.stages, run.rows, run.samples) == (None, None, (), (), (), None)


def test_a_diagnosis_alone_is_a_run_by_file_and_by_folder(tmp_path: Path) -> None:
    write_run(tmp_path / "other", diagnosis=MadeDiagnosis())
    folder = tmp_path / "other" / "diagnosis"
    for path in (folder, folder / "diagnostics.json"):
        run = read_run(path)
        assert run.name == "other"
        assert Evidence(run).value("cci") == 0.3


def test_the_model_is_told_by_its_manifest_and_the_headers_of_its_weights(tmp_path: Path) -> None:
    model = tmp_path / "run" / "model"
    model.mkdir(parents=True)
    parts = {"denoiser": {"class_path": "fewstep.D", "init_args": {}}}
    values = {"format": 2, "identity": {"kind": "text", "block_size": 8}, "parts": parts, "sha256": {}}
    (model / "config.json").write_text(json.dumps(values))
    save_file({"a": torch.zeros(2, 3), "b": torch.zeros(5), "c": torch.zeros(())}, model / "denoiser.safetensors")
    run = read_run(tmp_path / "run")
    assert run.manifest == Manifest(values["identity"], {"denoiser": PartSpec("fewstep.D", {})})
    assert (run.kind, run.sizes, run.block_size) == ("text", {"denoiser": 12}, 8)
    with pytest.raises(UserError, match="is a model: give the run's folder that it lies in"):
        read_run(model)


def test_figures_of_training_stand_in_where_a_diagnosis_lacks_them(tmp_path: Path) -> None:
    diagnosis = MadeDiagnosis()
    del diagnosis.table["cci"]
    folder = write_run(tmp_path / "run", diagnosis=diagnosis)
    for stage, value in (("flow", 0.4), ("head", 0.2)):
        (folder / stage).mkdir()
        line = {"step": 7, "seed": 0, "num_examples": 4, "num_positions": 2, "results": {}}
        first = {**line, "table": {"cci": estimate(0.9)}}
        last = {**line, "table": {"cci": estimate(value), "dabi": estimate(99.0)}}
        lines = f"{json.dumps(first)}\n{json.dumps(last)}\n" + '{"cut off'
        (folder / stage / "diagnostics.jsonl").write_text(lines)
    evidence = Evidence(read_run(folder))
    assert evidence.value("dabi") == 2.0
    assert evidence.value("cci") == 0.4
    told = evidence.told_by("cci")
    assert told is not None and told.origin == "training of the flow, step 7"


def test_resumed_logs_go_on_and_losses_that_are_not_finite_are_left_out(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", logs=True)
    later = folder / "flow" / "csv" / "version_1" / "metrics.csv"
    later.parent.mkdir()
    later.write_text("epoch,step,train/loss,val/loss\n0,20,0.6,\n0,30,nan,\n0,40,0.5,\n")
    (flow,) = read_run(folder).stages
    assert (flow.curves[0].x, flow.curves[0].y) == ((10.0, 20.0, 40.0), (0.9, 0.6, 0.5))


def test_two_runs_of_one_name_are_told_apart_and_the_same_run_twice_is_refused(tmp_path: Path) -> None:
    first, second = (write_run(tmp_path / place / "run", table=quickstart_table()) for place in ("a", "b"))
    assert [run.name for run in read_runs([str(first), str(second)])] == ["run", "run (2)"]
    with pytest.raises(UserError, match="is given twice"):
        read_runs([str(first), str(second), f"{first}/../run"])


Break = Callable[[dict[str, Any]], Any]


def changed(path: str, value: Any) -> Break:
    def change(whole: dict[str, Any]) -> dict[str, Any]:
        *parents, key = path.split("/")
        place: Any = whole
        for name in parents:
            place = place[int(name) if isinstance(place, list) else name]
        place[int(key) if isinstance(place, list) else key] = value
        return whole

    return change


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda whole: [1], r"the whole is \[1\]: expected an object"),
        (lambda whole: {}, "kind is missing"),
        (changed("kind", "sound"), "kind is \"sound\": expected 'text' or 'images'"),
        (changed("n", -1), "n is -1: expected a whole number"),
        (changed("table/cci", 3), r"table.cci is 3: expected an object with 'num_examples'"),
        (changed("table/cci/value", "much"), r'table.cci.value is "much": expected a finite number'),
        (changed("table/cci/value", float("nan")), r"table.cci.value is NaN: expected a finite number"),
        (changed("table/cci/interval", [1, 2]), r"table.cci.interval is \[1, 2\]: expected an object with 'low'"),
        (changed("results/decidedness/curves/decidedness/y", [0.5]), r"decidedness.y is \[0.5\]: expected 3 numbers"),
        (changed("results/tube", {}), "results.tube.rows is missing"),
        (changed("results/stiffness/curves", None), "results.stiffness.curves is null: expected an object"),
        (changed("results/decision_step/curves/shares/y/1", True), r"y\[1\] is true: expected a finite number"),
        (
            changed("results/tube/axes", {"kind": "pie"}),
            "results.tube.axes.kind is \"pie\": expected 'lines' or 'bars'",
        ),
        (changed("thresholds", {"cci": {"good": 1}}), "thresholds.cci.bad is missing"),
        (changed("left_out", {"cci": 3}), "left_out.cci is 3: expected a text"),
    ],
)
def test_a_broken_diagnosis_is_refused_with_its_file_and_key(break_it: Break, message: str, tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", diagnosis=MadeDiagnosis())
    file = folder / "diagnosis" / "diagnostics.json"
    file.write_text(json.dumps(break_it(MadeDiagnosis().to_dict())))
    with pytest.raises(UserError, match=message) as error:
        read_run(folder)
    assert str(file) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("table.json", b"{", "is no JSON"),
        ("table.json", b"\xff", "is not UTF-8"),
        ("table.json", b"[" * 100_000, "nests too deeply|is no JSON"),
        ("table.json", b'{"rows": [{"name": "flow"}]}', r"rows\[0\].readout is missing"),
        ("table.json", b'{"rows": []}', "is no table of this fewstep version"),
        ("evaluation/rows.jsonl", b'{"setting": {}}\n', "line 1.setting.name is missing"),
        ("evaluation/rows.jsonl", b"\nx\n", "line 1, column 1, is no JSON"),
        ("evaluation/rows.jsonl", b'{"setting": {"name": "flow"}, "entropy_nats": 1}\n', "is no row of this fewstep"),
        ("flow/diagnostics.jsonl", b"{}\n", "line 1.results is missing"),
        ("flow/csv/version_0/metrics.csv", b"epoch\n1\n", "has no column step"),
        ("flow/csv/version_0/metrics.csv", b"step,train/loss\n1,low\n", "train/loss is 'low': expected a number"),
        ("model/config.json", b'{"parts": {}}', "does not describe a fewstep model"),
        ("model/config.json", b'{"format": 2, "parts": {"a": 1}, "identity": {}, "sha256": {}}', "config.json: "),
        ("model/denoiser.safetensors", b"junk", "is no safetensors file"),
        ("model/denoiser.safetensors", (2**60).to_bytes(8, "little"), "is no safetensors file"),
    ],
)
def test_a_broken_file_is_refused_in_one_line(name: str, text: bytes, message: str, tmp_path: Path) -> None:
    file = tmp_path / "run" / name
    file.parent.mkdir(parents=True)
    file.write_bytes(text)
    with pytest.raises(UserError, match=message) as error:
        read_run(tmp_path / "run")
    assert name.split("/")[-1] in str(error.value)
    assert "\n" not in str(error.value)


def test_rows_of_two_protocols_are_refused(tmp_path: Path) -> None:
    other = replace(PROTOCOL, num_samples=9)
    rows = [*sweep_rows(), sweep_row("parallel", 8, "0", 100.0, protocol=other)]
    with pytest.raises(UserError, match=r"rows.jsonl: row 8 is of scoring protocol .*num_samples: 8 against 9"):
        read_run(write_run(tmp_path / "run", rows=rows))


def test_a_folder_with_nothing_and_a_path_that_is_none_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds nothing of a run: expected some of model/"):
        read_run(tmp_path)
    with pytest.raises(UserError, match="does not exist: give a run's folder"):
        read_run(tmp_path / "nowhere")
