"""A disk that is full or closed to writing: one line, and the checkpoints from before it are whole."""

import subprocess
import sys
from pathlib import Path

import pytest

from fewstep.cli.main import main
from tests.runs import ROOT, Workshop

LIMITED = """
import resource, sys
from fewstep.cli.main import main
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), resource.RLIM_INFINITY))
sys.exit(main(sys.argv[2:]))
"""


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
