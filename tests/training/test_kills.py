"""A run that is killed at any moment, or whose disk is full, ends as the run that was not: to the last bit."""

import csv
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from fewstep.cli.main import main
from fewstep.storage import load_checkpoint
from fewstep.training.run_folder import AtomicCheckpointIO
from tests.forked import kill_when, start_command
from tests.runs import ROOT, Workshop
from tests.training.test_resume import assert_same_end

LIMITED = """
import resource, sys
from fewstep.cli.main import main
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), resource.RLIM_INFINITY))
sys.exit(main(sys.argv[2:]))
"""
STEPS = 24
FLAGS = ["--ema.decay=0.9", "--checkpoint.every_n_steps=2", "--trainer.val_check_interval=10"]
STAGES = {
    "autoencoder": ["--model.objective.token_masking=0.1"],
    "flow": ["--trainer.accumulate_grad_batches=2"],
}


def arguments_of(workshop: Workshop, stage: str, run_dir: Path, *flags: str, steps: int = STEPS) -> list[str]:
    """A run whose steps go over the text more than once, so that most kills are in the middle of a pass."""
    return workshop.arguments(stage, *FLAGS, *STAGES[stage], *flags, f"--run_dir={run_dir}", steps=steps)


def losses(run_dir: Path) -> dict[int, str]:
    """Training loss by step, as written; what was done again after a kill must be what was done before it."""
    found: dict[int, str] = {}
    for file in sorted(run_dir.glob("csv/version_*/metrics.csv"), key=lambda file: int(file.parent.name[8:])):
        with file.open(newline="", encoding="utf-8") as stream:
            for row in csv.DictReader(stream):
                if row.get("train/loss"):
                    assert found.setdefault(int(row["step"]), row["train/loss"]) == row["train/loss"], row["step"]
    return found


def assert_same_run(whole: Path, broken: Path) -> None:
    """The same losses and the same end; nothing torn is left."""
    assert losses(whole) == losses(broken)
    assert len(losses(whole)) > 0
    assert_same_end(whole, broken)
    left = {file.name for file in (broken / "checkpoints").iterdir()}
    assert left <= {"last.ckpt", "previous.ckpt", "set_aside.ckpt"}
    assert not list(broken.glob(".model-*"))


def go_on(broken: Path, arguments: list[str]) -> list[str]:
    """The arguments of the next start: the last checkpoint where there is one, else the beginning."""
    saved = any((broken / "checkpoints" / name).exists() for name in ("last.ckpt", "previous.ckpt"))
    return [*arguments, "--ckpt_path=last" if saved else "--overwrite"]


@pytest.mark.parametrize(
    ("stage", "kills"),
    [("autoencoder", 1), *(pytest.param(stage, 20, marks=pytest.mark.slow) for stage in STAGES)],
)
def test_kills_at_random_moments_change_nothing(workshop: Workshop, tmp_path: Path, stage: str, kills: int) -> None:
    whole, broken, output = tmp_path / "whole", tmp_path / "broken", tmp_path / "output"
    assert main(["train", *arguments_of(workshop, stage, whole)]) == 0
    arguments = arguments_of(workshop, stage, broken)
    draw = random.Random(f"{stage}{kills}")
    for number in range(kills):
        process = start_command(["train", *go_on(broken, arguments)], output)
        # Somewhere in its next few steps, the first of which includes the start: that is everywhere in the end.
        wanted = lines_logged(broken) + draw.randint(0, STEPS // (kills + 1))
        delay = draw.uniform(0, 1.0 if wanted == lines_logged(broken) else 0.05)
        assert kill_when(process, lambda: has_lines(broken, wanted, delay)), f"kill {number}"  # noqa: B023
    process = start_command(["train", *go_on(broken, arguments)], output)
    process.join(300)
    assert process.exitcode == 0, output.read_text()[-2000:]
    assert "Traceback" not in output.read_text()
    assert_same_run(whole, broken)


def lines_logged(run_dir: Path) -> int:
    """Lines of all CSV files of a run."""
    return sum(file.read_bytes().count(b"\n") for file in run_dir.glob("csv/version_*/metrics.csv"))


def has_lines(run_dir: Path, count: int, delay: float) -> bool:
    """Whether so many lines are there; when they are, only after ``delay`` seconds."""
    enough = lines_logged(run_dir) >= count
    time.sleep(delay if enough else 0.002)
    return enough


def flipped(file: Path) -> None:
    """One bit of a weight, which neither torch nor the file's outline would notice."""
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize("damage", [flipped, Path.unlink])
def test_last_falls_back_to_the_newest_whole_checkpoint_and_says_so(
    workshop: Workshop, tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: Callable[[Path], None]
) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    arguments = workshop.arguments("language_model", "--checkpoint.every_n_steps=2", steps=6)
    assert main(["train", *arguments, f"--run_dir={whole}"]) == 0
    assert main(["train", *arguments, f"--run_dir={broken}"]) == 0
    checkpoints = broken / "checkpoints"
    damage(checkpoints / "last.ckpt")
    capsys.readouterr()
    assert main(["train", *arguments, f"--run_dir={broken}", "--ckpt_path=last"]) == 0
    out = capsys.readouterr().out
    (line,) = (line for line in out.splitlines() if "previous.ckpt" in line)
    assert "last.ckpt" in line and "of step 4" in line and "going on from step 4" in out
    assert (checkpoints / "set_aside.ckpt").exists() == (damage is not Path.unlink)
    assert_same_run(whole, broken)
    for name in ("last.ckpt", "previous.ckpt"):
        (checkpoints / name).write_bytes((checkpoints / name).read_bytes()[:1000])
    assert main(["train", *arguments, f"--run_dir={broken}", "--ckpt_path=last"]) == 2
    errors = capsys.readouterr().err
    assert errors.count("\n") == 1 and "last.ckpt cannot be read" in errors


def test_there_is_a_last_checkpoint_at_every_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    last, previous, replace = tmp_path / "last.ckpt", tmp_path / "previous.ckpt", os.replace
    AtomicCheckpointIO().save_checkpoint({"step": 0}, last)
    there: list[bool] = []

    def watched(*names: Path) -> None:
        there.append(last.exists())
        replace(*names)
        there.append(last.exists())

    monkeypatch.setattr(os, "replace", watched)
    for step in (1, 2):
        AtomicCheckpointIO().save_checkpoint({"step": step}, last)
    assert there and all(there)
    assert [load_checkpoint(file)["step"] for file in (last, previous)] == [2, 1]
    assert {file.name for file in tmp_path.iterdir()} == {"last.ckpt", "previous.ckpt"}


@pytest.mark.slow
def test_a_file_that_may_not_grow_is_one_line_and_the_run_goes_on_later(
    workshop: Workshop, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = workshop.arguments("autoencoder", "--checkpoint.every_n_steps=1", f"--run_dir={tmp_path}")
    assert main(["train", *arguments, "--trainer.max_steps=2"]) == 0
    before = (tmp_path / "checkpoints" / "last.ckpt").read_bytes()
    command = [sys.executable, "-c", LIMITED, str(len(before) // 2), "train", *arguments, "--ckpt_path=last"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 2, done.stderr
    (line,) = (line for line in done.stderr.splitlines() if line.startswith("fewstep: error:"))
    assert "File too large" in line
    assert "go on by --ckpt_path last" in line
    assert (tmp_path / "checkpoints" / "last.ckpt").read_bytes() == before
    assert main(["train", *arguments, "--ckpt_path=last"]) == 0
