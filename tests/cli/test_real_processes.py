"""Refusals and long outputs as a shell sees them: exit code, one line, memory, and nothing of Python's."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.runs import ROOT, Workshop

SCRIPT = "import sys, torch\ntorch.set_num_threads(1)\nfrom fewstep.cli.main import main\nsys.exit(main())"


def python(arguments: list[str], folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Python in a process of its own, on one thread."""
    shared = {**os.environ, "OMP_NUM_THREADS": "1", "HOME": str(folder), **environment}
    command = [sys.executable, *arguments]
    return subprocess.run(command, env=shared, cwd=folder, capture_output=True, text=True, timeout=600)


def line_of(done: subprocess.CompletedProcess[str]) -> str:
    """The one line of a refusal."""
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1), done.stderr
    assert done.stderr.startswith("fewstep: error: ")
    return done.stderr


@pytest.mark.parametrize("door", [pytest.param("train.py", marks=pytest.mark.slow), "sample.py"])
def test_the_doors_of_the_checkout_refuse_like_the_command(door: str, tmp_path: Path) -> None:
    # Another home: torchmetrics has matplotlib look for fonts, which it remembers there.
    assert "nonsense" in line_of(python([str(ROOT / door), "nonsense"], tmp_path, HOME=str(tmp_path.parent)))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("command", ["train", "evaluate"])
def test_wandb_out_of_reach_is_told_before_anything_is_made(
    shop: Path, workshop: Workshop, tmp_path: Path, command: str
) -> None:
    nobody = {"WANDB_MODE": "online", "WANDB_API_KEY": "9f" * 20, "WANDB_BASE_URL": "http://127.0.0.1:9"}
    arguments = {
        "train": workshop.arguments("autoencoder", f"--run_dir={tmp_path / 'out'}"),
        "evaluate": [str(shop / "model"), "--device", "cpu", "--out", "out", "--wandb"],
    }
    line = line_of(python(["-c", SCRIPT, command, *arguments[command]], tmp_path, **nobody))
    assert "WANDB_MODE=offline" in line
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_samples_are_written_as_they_come_in_memory_that_does_not_grow(shop: Path, tmp_path: Path) -> None:
    peaks = {}
    for count in (64, 20_000):
        output = tmp_path / f"{count}.jsonl"
        options = ["sample", str(shop / "model"), "--num_samples", str(count), "--steps", "1", "--device", "cpu"]
        command = [sys.executable, "-c", SCRIPT, *options, "--output", str(output)]
        watched = f"import resource, subprocess\nsubprocess.run({command!r}, check=True)\n"
        watched += "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
        done = python(["-c", watched], tmp_path)
        assert done.returncode == 0, done.stderr
        peaks[count] = int(done.stdout.split()[-1])
        with output.open() as lines:
            assert [json.loads(line)["index"] for line in lines] == list(range(count))
    assert peaks[20_000] < 1.05 * peaks[64], peaks
