"""`fewstep compare`: trains what is missing, measures what has no row, and refuses in a line."""

from pathlib import Path

import pytest
import yaml

from fewstep.cli.main import main
from fewstep.errors import UserError
from fewstep.lab.compare import command as compare
from fewstep.provenance import provenance
from tests.bundles import tiny_bundle, with_identity
from tests.cli.shops import rows_in
from tests.runs import write_text

OBJECTIVES = "flow_matching,consistency_distillation,progressive,tests.outside.Noisy"
FEW = ["--budget", "12", "--teacher_steps", "2", "--steps", "1,2", "--samples", "3", "--seeds", "1"]
SWEEP = ["--matched_entropy", "2"]


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
    return ["compare", str(shop / "model"), *FEW, *SWEEP, *map(str, machine), *map(str, options)]


def compared(shop: Path, out: Path) -> list[str]:
    """The command line of :func:`whole`."""
    return command(shop, "--objectives", OBJECTIVES, "--reinjection", "0,1", "cosine:1,0", "--out", out)


@pytest.fixture(scope="module")
def whole(shop: Path) -> Path:
    """A finished comparison."""
    assert main(compared(shop, shop / "whole")) == 0
    return shop / "whole"


def test_every_objective_has_its_rows_and_table_picture_and_data_are_written(shop: Path, whole: Path) -> None:
    rows = rows_in(whole / "rows.jsonl")
    settings = {
        (*(row["setting"][axis] for axis in ("name", "readout", "num_steps", "reinjection")),)
        for row in rows
        if "num_steps" in row["setting"]
    }
    names, readouts, rules = OBJECTIVES.split(","), ("parallel", "head"), ("0", "cosine:1,0", "1")
    expected = {(name, readout, k, rule) for name in names for readout in readouts for k in (1, 2) for rule in rules}
    ruled_out = {("consistency_distillation", name, 2, rule) for name in readouts for rule in rules[:2]}
    assert settings == expected - ruled_out
    assert rows[0]["setting"] == {"name": "held-out text"}
    assert all(row["values"]["training_seconds"]["value"] > 0 for row in rows if "num_steps" in row["setting"])
    assert len({row["model"] for row in rows}) == 6  # what all start from, three runs, two rounds
    made_with = provenance("compare", compared(shop, whole)[1:])
    assert all(row["provenance"] == made_with for row in rows)
    markdown = (whole / "compare.md").read_text()
    assert all(text in markdown for text in (*names, "is ruled out: ", "beats the flow by", "rms / data"))
    assert (whole / "compare.csv").read_text().count("\n") == len(rows) + 1
    temperatures = {row["setting"].get("noise_scale", row["setting"].get("temperature")) for row in rows[6:]}
    assert temperatures == {1.0, 2.0} and "at temperature" in markdown
    assert (whole / "compare.png").read_bytes().startswith(b"\x89PNG")


def test_the_same_command_trains_and_measures_nothing_again_and_another_budget_is_refused(
    shop: Path, whole: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {file: file.read_bytes() for file in whole.rglob("*") if file.suffix in (".jsonl", ".safetensors", ".md")}
    monkeypatch.setattr("fewstep.training.command.run_training", lambda arguments: pytest.fail("trains again"))
    assert main(compared(shop, whole)) == 0
    assert capsys.readouterr().out.count("is done already") == 6  # teacher, three runs, two rounds
    assert {file: file.read_bytes() for file in before} == before
    assert main([*command(shop, "--objectives", "flow_matching", "--out", whole), "--budget", "30"]) == 2
    assert "was trained otherwise" in capsys.readouterr().err


def test_finished_comparisons_are_drawn_beside_each_other(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compare", "--contrast", str(whole), str(whole), "--out", str(tmp_path / "c.png")]) == 0
    assert (tmp_path / "c.png").read_bytes().startswith(b"\x89PNG")
    assert main(["compare", "--contrast", str(tmp_path)]) == 2
    assert "no finished comparison" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--objectives mean_flow,magic", "objective is 'magic': expected one of flow_matching, "),
        ("--objectives ,", "--objectives ',' names nothing"),
        ("--steps 0,1", "expected whole numbers of at least 1"),
        ("--steps one", "--steps is 'one': expected whole numbers of at least 1, with commas between"),
        ("--reinjection 2", "re-injection strength is 2.0"),
        ("--budget 0", "budget"),
        ("--objectives progressive --steps 2,3", "goes from 3 to 2, which does not divide it"),
        ("--samples 100000", "the held-out text has"),
        ("--readout aloud", "readout is 'aloud': expected one of parallel, mask_predict, head, head_off"),
    ],
)
def test_bad_input_is_one_line_before_anything_is_trained(
    options: str, message: str, shop: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command(shop, "--out", tmp_path / "out", *options.split())) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and message in err
    assert not (tmp_path / "out" / "teacher").exists()


def test_without_a_model_or_with_something_else_it_says_what_is_missing(tmp_path: Path) -> None:
    for argv, message in (([], "no model given"), ([str(tmp_path / "none")], "does not exist")):
        with pytest.raises(UserError, match=message):
            compare.main(argv)
