"""One command at a time writes a folder; a process that was killed holds nothing."""

import os
from pathlib import Path

import pytest

from fewstep.cli.main import main
from fewstep.locking import LOCK_FILE, FolderLock
from tests.runs import Workshop


@pytest.mark.parametrize("flags", [["--overwrite"], ["--ckpt_path=last"]])
def test_a_second_run_in_one_folder_is_refused_and_the_first_is_not_touched(
    workshop: Workshop, tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str]
) -> None:
    arguments = workshop.arguments("language_model", f"--run_dir={tmp_path}", steps=2)
    assert main(["train", *arguments]) == 0
    capsys.readouterr()
    with FolderLock(tmp_path, "--run_dir"):
        before = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*")}
        assert main(["train", *arguments, *flags]) == 2
        errors = capsys.readouterr().err
        assert errors.count("\n") == 1 and f"--run_dir {tmp_path} is in use by process {os.getpid()} on" in errors
        assert {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*")} == before
    (tmp_path / LOCK_FILE).write_text("of a process that was killed")
    assert main(["train", *arguments, *flags]) == 0
    assert main(["train", *arguments, "--overwrite"]) == 0, "a run gives its lock back"


def test_two_evaluations_of_one_folder_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with FolderLock(tmp_path, "--out"):
        assert main(["evaluate", "model", "--out", str(tmp_path)]) == 2
        errors = capsys.readouterr().err
        assert errors.count("\n") == 1 and f"--out {tmp_path} is in use by process {os.getpid()} on" in errors
        assert [file.name for file in tmp_path.iterdir()] == [LOCK_FILE]
