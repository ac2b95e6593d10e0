"""``fewstep train`` at its edge: every mistake is one line with exit 2, and an earlier run is not lost."""

from pathlib import Path

import pytest

from fewstep.cli.main import main
from tests.runs import Workshop, logged


def refusal(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> str:
    """The one line on stderr of a command that must fail with exit 2."""
    capsys.readouterr()
    assert main(["train", *arguments]) == 2
    out, errors = capsys.readouterr()
    assert not out and errors.count("\n") == 1 and errors.startswith("fewstep: error: ")
    return errors


def test_an_earlier_run_is_kept_unless_told_otherwise(
    workshop: Workshop, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = workshop.arguments("language_model", f"--run_dir={tmp_path}", steps=2)
    assert main(["train", *arguments]) == 0
    kept = (tmp_path / "model" / "language_model.safetensors").read_bytes()
    assert "--overwrite" in refusal(capsys, arguments)
    assert (tmp_path / "model" / "language_model.safetensors").read_bytes() == kept
    (tmp_path / "notes.txt").write_text("mine")
    for flag in ("--overwrite", "--overwrite=true"):
        assert main(["train", *arguments, flag, "--seed_everything=1"]) == 0
        assert len(logged(tmp_path)["train/loss"]) == 2, "the old log is gone, so no step comes twice"
    assert (tmp_path / "model" / "language_model.safetensors").read_bytes() != kept
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_a_run_does_not_delete_the_model_that_it_builds_on(
    workshop: Workshop, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir = workshop.autoencoder.parent
    arguments = workshop.arguments("flow", f"--run_dir={run_dir}", "--overwrite")
    assert "builds on" in refusal(capsys, arguments)
    assert workshop.autoencoder.is_dir()


def test_a_checkpoint_of_elsewhere_does_not_open_a_used_folder(
    workshop: Workshop, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    arguments = workshop.arguments("language_model", steps=2)
    for run_dir in (one, other):
        assert main(["train", *arguments, f"--run_dir={run_dir}"]) == 0
    longer = [*arguments, "--trainer.max_steps=3", f"--ckpt_path={one / 'checkpoints' / 'last.ckpt'}"]
    assert "holds an earlier run" in refusal(capsys, [*longer, f"--run_dir={other}"])
    assert main(["train", *longer, f"--run_dir={tmp_path / 'third'}"]) == 0
    assert list(logged(tmp_path / "third")["train/loss"]) == [2]


def test_a_stage_builds_on_a_checkpoint_as_on_a_model_folder(workshop: Workshop, tmp_path: Path) -> None:
    checkpoint = workshop.folder / "autoencoder" / "checkpoints" / "last.ckpt"
    for name, base in (("folder", workshop.autoencoder), ("checkpoint", checkpoint)):
        flags = [f"--run_dir={tmp_path / name}", f"--model.autoencoder={base}"]
        assert main(["train", *workshop.arguments("flow", *flags)]) == 0
    assert logged(tmp_path / "folder")["val/loss"] == logged(tmp_path / "checkpoint")["val/loss"]


def test_a_run_says_what_it_does_and_where_it_ends(
    workshop: Workshop, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    arguments = workshop.arguments("language_model", f"--run_dir={tmp_path}", "--trainer.enable_progress_bar=true")
    assert main(["train", *arguments]) == 0
    out, errors = capsys.readouterr()
    first, *_, last = out.splitlines()
    assert first.startswith("==> language_model: ") and "4 steps of 4 blocks" in first
    assert "text.jsonl: blocks of 8, 300 token types" in out and "4/4" in errors
    assert last.endswith(f"model in {tmp_path / 'model'}")
    for noise in ("GPU available", "Tip", "litlogger", "seed"):
        assert noise not in out + errors
