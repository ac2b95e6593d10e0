"""`fewstep report`: a page whole or not at all, the verdict told, traces, wandb, and refusals in one line."""

import json
import re
from pathlib import Path

import pytest
import wandb

from fewstep.cli.main import main
from tests.bundles import tiny_bundle
from tests.lab.report.runs_on_disk import MadeDiagnosis, sweep_rows, whole_run, write_run

ROOT = Path(__file__).parents[3]


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    """The one line that the command says where it refuses."""
    assert main(["report", *map(str, arguments)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    return err


def test_a_page_is_written_beside_the_run_and_the_verdict_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = whole_run(tmp_path / "mine")
    assert main(["report", str(folder), "--title", "How it went"]) == 0
    out = capsys.readouterr().out
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "<h1>How it went</h1>" in page
    assert out.startswith("mine: 0 bad, 0 look, 15 good, 0 not measured\n")
    assert out.endswith(f"\nreport    {folder / 'report.html'}\n")
    before = (folder / "report.html").read_bytes()
    assert "exists already" in refusal(capsys, folder)
    assert main(["report", str(folder), "--title", "How it went", "--overwrite"]) == 0
    assert (folder / "report.html").read_bytes() == before


def test_several_runs_and_a_diagnosis_alone_make_one_page(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    one = whole_run(tmp_path / "one")
    other = write_run(tmp_path / "other", diagnosis=MadeDiagnosis()) / "diagnosis" / "diagnostics.json"
    monkeypatch.chdir(tmp_path)
    assert main(["report", str(one), str(other)]) == 0
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["report.html"]
    out = capsys.readouterr().out
    assert "\none: " in f"\n{out}" and "\nother: " in out
    assert "<h1>Few-step report: one, other</h1>" in (tmp_path / "report.html").read_text(encoding="utf-8")
    assert main(["report", str(other)]) == 0
    assert other.with_name("report.html").is_file()


def test_diagnoses_of_a_protocol_are_printed_side_by_side(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, protocol in (("a", "paper"), ("b", "paper"), ("c", None)):
        content = MadeDiagnosis().to_dict()
        content["protocol"]["name"] = protocol
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    files = [str(tmp_path / f"{name}.json") for name in "abc"]
    page = ["--out", str(tmp_path / "page.html"), "--overwrite"]
    assert main(["report", *files[:2], *page]) == 0
    out = capsys.readouterr().out
    assert re.search(r"^dabi +2 \(1.8 to 2.2\) +2 \(1.8 to 2.2\)$", out, re.M)
    assert "Their protocols are the same." in out
    assert main(["report", *files, *page]) == 0
    assert "Their protocols" not in capsys.readouterr().out, "a whole diagnosis has too many rows"
    assert "Their protocols differ in name." in (tmp_path / "page.html").read_text(encoding="utf-8")


def test_a_run_with_a_model_gets_a_viewer_whose_traces_are_kept_and_a_broken_model_leaves_no_page(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_run(tmp_path / "run", rows=sweep_rows())
    tiny_bundle().save_pretrained(folder / "model")
    command = ["report", str(folder), "--device", "cpu"]
    assert main([*command, "--traces", "0"]) == 0
    without = (folder / "report.html").read_text(encoding="utf-8")
    assert 'id="trace-app"' not in without and not (folder / "traces.json").exists()
    assert main([*command, "--traces", "2", "--overwrite"]) == 0
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert 'id="viewer"' in page and 'id="trace-app"' in page and 'href="#viewer"' in page
    assert json.loads((folder / "traces.json").read_text())["num_samples"] == 2
    (folder / "model" / "denoiser.safetensors").unlink()
    (folder / "report.html").unlink()
    capsys.readouterr()
    assert "denoiser.safetensors" in refusal(capsys, folder, "--device", "cpu")
    assert not list(folder.glob("*report*"))


def test_a_report_goes_to_wandb_when_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = whole_run(tmp_path / "mine")
    assert main(["report", str(folder), "--wandb"]) == 0
    assert "nothing logged: WANDB_MODE is disabled" in capsys.readouterr().out
    assert not (folder / "wandb").exists()
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert main(["report", str(folder), "--overwrite"]) == 0
    assert not (folder / "wandb").exists()
    assert main(["report", str(folder), "--overwrite", "--wandb"]) == 0
    assert f"wandb     {folder / 'wandb'}" in capsys.readouterr().out
    wandb.teardown()  # ends wandb's own process, which writes its files
    logged = [file for file in (folder / "wandb").rglob("media/**/*") if file.is_file()]
    assert {file.suffix for file in logged} == {".json", ".png"}
    verdict = next(file for file in logged if file.match("report/verdict*"))
    lines = json.loads(verdict.read_text())["data"]
    assert len(lines) == 15
    assert ["mine", "Does the readout read clean latents?", "good", "100 %"] in [line[:4] for line in lines]
    records = b"".join(file.read_bytes() for file in (folder / "wandb").rglob("*.wandb"))
    assert b"report/mine/clean" in records  # in the summary
