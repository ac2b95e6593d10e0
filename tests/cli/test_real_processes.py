"""Refusals and long outputs as a shell sees them: exit code, one line, memory, and nothing of Python's."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.bundles import tiny_bundle
from tests.cli.shops import make_shop
from tests.runs import ROOT, Workshop

MEGABYTE = 1 << 20
SCRIPT = "import sys, torch\ntorch.set_num_threads(1)\nfrom fewstep.cli.main import main\nsys.exit(main())"


def fewstep(arguments: list[str], folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own, on one thread."""
    shared = {**os.environ, "OMP_NUM_THREADS": "1", "HOME": str(folder), **environment}
    command = [sys.executable, "-c", SCRIPT, *arguments]
    return subprocess.run(command, env=shared, cwd=folder, capture_output=True, text=True, timeout=300)


def line_of(done: subprocess.CompletedProcess[str]) -> str:
    """The one line of a refusal."""
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith("fewstep: error: ")
    return done.stderr


@pytest.mark.parametrize("door", [pytest.param("train.py", marks=pytest.mark.slow), "sample.py"])
def test_the_doors_of_the_checkout_refuse_like_the_command(door: str, tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / door), "nonsense"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert "nonsense" in line_of(done)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("broken.jsonl", b'{"text": "' + b"x" * (100 * MEGABYTE), "line 1 is not JSON"),
        ("binary.txt", b"x" * (100 * MEGABYTE) + b"\0", "line 1 looks binary"),
    ],
)
def test_a_line_of_100_megabytes_is_read_once_and_not_shown(
    name: str, content: bytes, expected: str, tmp_path: Path
) -> None:
    make_shop(tmp_path)
    (tmp_path / name).write_bytes(content)
    few = ["--device", "cpu", "--samples", "2", "--seeds", "1", "--cache_dir", "cache", "--out", "out"]
    line = line_of(fewstep(["evaluate", "model", *few, "--source", name], tmp_path))
    assert expected in line and len(line) < 700
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_wandb_out_of_reach_is_told_before_anything_is_made(workshop: Workshop, tmp_path: Path) -> None:
    nobody = {"WANDB_MODE": "online", "WANDB_API_KEY": "9f" * 20, "WANDB_BASE_URL": "http://127.0.0.1:9"}
    done = fewstep(["train", *workshop.arguments("autoencoder", f"--run_dir={tmp_path / 'run'}")], tmp_path, **nobody)
    assert "127.0.0.1:9" in line_of(done)
    assert "WANDB_MODE=offline" in done.stderr
    assert not (tmp_path / "run").exists()
    make_shop(tmp_path)
    done = fewstep(["evaluate", "model", "--device", "cpu", "--out", "out", "--wandb"], tmp_path, **nobody)
    assert "WANDB_MODE=offline" in line_of(done)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_samples_are_written_as_they_come_in_memory_that_does_not_grow(tmp_path: Path) -> None:
    tiny_bundle().save_pretrained(tmp_path / "model")
    peaks = {}
    for count in (64, 20_000):
        output = tmp_path / f"{count}.jsonl"
        options = ["sample", "model", "--num_samples", str(count), "--steps", "1", "--device", "cpu"]
        command = [sys.executable, "-c", SCRIPT, *options, "--output", str(output)]
        watched = f"import resource, subprocess\nsubprocess.run({command!r}, check=True)\n"
        watched += "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
        run = [sys.executable, "-c", watched]
        done = subprocess.run(run, cwd=tmp_path, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stderr
        peaks[count] = int(done.stdout.split()[-1])
        with output.open() as lines:
            assert [json.loads(line)["index"] for line in lines] == list(range(count))
    assert peaks[20_000] < 1.05 * peaks[64], peaks
