"""`fewstep compare`: trains what is missing, measures what has no row, and refuses in a line."""

import json
from pathlib import Path

import pytest
import yaml

from fewstep.cli.main import main
from fewstep.cli.parser import parse_options
from fewstep.errors import UserError
from fewstep.lab.compare import command as compare
from fewstep.provenance import provenance
from tests.bundles import tiny_bundle, with_identity
from tests.cli.shops import rows_in
from tests.runs import write_text

OBJECTIVES = "flow_matching,consistency_distillation,progressive,tests.outside.Noisy"
FEW = ["--budget", "12", "--teacher_steps", "2", "--steps", "1,2", "--samples", "3", "--seeds", "1"]


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text with its cache, a model on it with all parts, and a size for runs of seconds."""
    folder = tmp_path_factory.mktemp("shop")
    source = write_text(folder / "text.jsonl")
    with_identity(tiny_bundle(), source=str(source), grid_mean=None, grid_std=None).save_pretrained(folder / "model")
    flow = {
        "data": {"batch_size": 4, "num_validation_blocks": 4},
        "model": {"init_args": {"denoiser": {"init_args": {"width": 16, "depth": 1, "num_heads": 2}}}},
        "trainer": {"precision": 32, "enable_progress_bar": False, "logger": False},
    }
    (folder / "tiny.yaml").write_text(yaml.safe_dump({"flow": flow}))
    return folder


def command(shop: Path, *options: str | Path) -> list[str]:
    machine = ["--size", shop / "tiny.yaml", "--cache_dir", shop / "cache", "--device", "cpu", "--batch_size", "2"]
    return ["compare", str(shop / "model"), *FEW, *map(str, machine), *map(str, options)]


@pytest.fixture(scope="module")
def whole(shop: Path) -> Path:
    """A finished comparison."""
    assert main(command(shop, "--objectives", OBJECTIVES, "--out", shop / "whole")) == 0
    return shop / "whole"


def test_every_objective_has_its_rows_and_table_picture_and_data_are_written(whole: Path) -> None:
    found = json.loads((whole / "compare.json").read_text())
    rows = [row for row in found["rows"] if row["num_steps"] is not None]
    settings = {(row["objective"], row["readout"], row["num_steps"], row["reinjection"]) for row in rows}
    names, readouts = OBJECTIVES.split(","), ("parallel", "head")
    assert settings == {(name, readout, k, g) for name in names for readout in readouts for k in (1, 2) for g in (0, 1)}
    assert found["rows"][0]["objective"] == "held-out text"
    assert found["real"] == found["rows"][0]["quality"]
    ruled_out = {(row["objective"], row["num_steps"], row["reinjection"]) for row in rows if row["ruled_out"]}
    assert ruled_out == {("consistency_distillation", 2, 0.0)}
    for row in rows:
        others = row["objective"] != "flow_matching" and not row["ruled_out"]
        assert (row["gain"] is not None) == others
        assert row["seconds"] > 0
    markdown = (whole / "compare.md").read_text()
    assert all(text in markdown for text in (*names, "ruled out", "beats the flow by", "stiffness peak"))
    assert (whole / "compare.png").read_bytes().startswith(b"\x89PNG")


def test_rows_carry_their_provenance_also_in_the_data_of_the_table(shop: Path, whole: Path) -> None:
    made_with = provenance("compare", command(shop, "--objectives", OBJECTIVES, "--out", whole)[1:])
    files = [whole / "yardsticks.jsonl", *(whole / name / "rows.jsonl" for name in OBJECTIVES.split(","))]
    rows = [row for file in files for row in rows_in(file)] + json.loads((whole / "compare.json").read_text())["rows"]
    assert all(row["provenance"] == made_with for row in rows)


def test_the_same_command_trains_and_measures_nothing_again(
    shop: Path, whole: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {file: file.read_bytes() for file in whole.rglob("*") if file.suffix in (".jsonl", ".safetensors", ".md")}
    monkeypatch.setattr("fewstep.training.command.run_training", lambda arguments: pytest.fail("trains again"))
    assert main(command(shop, "--objectives", OBJECTIVES, "--out", whole)) == 0
    assert capsys.readouterr().out.count("is done already") == 6  # teacher, three runs, two rounds
    assert {file: file.read_bytes() for file in before} == before


def test_a_run_of_another_budget_is_refused(shop: Path, whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*command(shop, "--objectives", "flow_matching", "--out", whole), "--budget", "30"]) == 2
    assert "was trained otherwise" in capsys.readouterr().err


def test_a_run_that_stopped_before_its_model_goes_on_from_its_checkpoint(
    shop: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[list[str]] = []
    monkeypatch.setattr("fewstep.training.command.run_training", calls.append)
    args = parse_options("compare", compare.CompareOptions, list(map(str, command(shop, "--out", tmp_path)[1:])))
    (run, *_) = compare.planned_runs(args, "text", tmp_path, [1, 2])
    (tmp_path / "teacher" / "checkpoints").mkdir(parents=True)
    (tmp_path / "teacher" / "checkpoints" / "last.ckpt").write_bytes(b"")
    compare.train(run, args, "text")
    assert calls[0][-2:] == ["--ckpt_path", "last"]
    first = json.loads((tmp_path / "teacher" / "training.json").read_text())["seconds"]
    compare.train(run, args, "text")
    assert json.loads((tmp_path / "teacher" / "training.json").read_text())["seconds"] > first


def test_finished_comparisons_are_drawn_beside_each_other(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compare", "--contrast", str(whole), str(whole), "--out", str(tmp_path / "c.png")]) == 0
    assert (tmp_path / "c.png").read_bytes().startswith(b"\x89PNG")
    assert main(["compare", "--contrast", str(tmp_path)]) == 2
    assert "holds no finished comparison" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--objectives mean_flow,magic", "objective is 'magic': expected one of flow_matching, "),
        ("--objectives ,", "--objectives ',' names nothing"),
        ("--steps 0,1", "expected K >= 1 and strengths in [0, 1]"),
        ("--steps one", "--steps is 'one': expected a whole number"),
        ("--reinjection 2", "expected K >= 1 and strengths in [0, 1]"),
        ("--budget 0", "budget"),
        ("--objectives progressive --steps 2,3", "goes from 3 to 2, which does not divide it"),
        ("--samples 100000", "the held-out text has"),
        ("--readout aloud", "readout is 'aloud': expected one of parallel, head, head_off"),
    ],
)
def test_bad_input_is_one_line_before_anything_is_trained(
    options: str, message: str, shop: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command(shop, "--out", tmp_path / "out", *options.split())) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and message in err
    assert not (tmp_path / "out" / "teacher").exists()


def test_without_a_model_or_with_something_else_it_says_what_is_wanted(tmp_path: Path) -> None:
    for argv, message in (([], "no model given"), ([str(tmp_path / "none")], "does not exist")):
        with pytest.raises(UserError, match=message):
            compare.main(argv)
