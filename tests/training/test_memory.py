"""Long runs do not grow: the resident memory of training is flat once it has settled."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.runs import ROOT, Workshop

GROWTH = 1.05
"""The memory at the end over that after the first third."""


def resident(number: int) -> int:
    """Bytes of memory of a running process."""
    return int(Path(f"/proc/{number}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads memory from /proc")
@pytest.mark.slow
def test_training_does_not_grow(workshop: Workshop, tmp_path: Path) -> None:
    steps = 500
    flags = ["--checkpoint.every_n_steps=20", f"--run_dir={tmp_path}"]
    arguments = workshop.arguments("flow", *flags, f"--trainer.val_check_interval={steps // 10}", steps=steps)
    output = tmp_path.with_suffix(".txt")
    with output.open("w") as stream:
        command = [sys.executable, str(ROOT / "train.py"), *arguments]
        process = subprocess.Popen(command, cwd=ROOT, stdout=stream, stderr=stream)
    file, seen = tmp_path / "csv" / "version_0" / "metrics.csv", {}
    while process.poll() is None:
        if file.exists() and (memory := resident(process.pid)):
            seen[file.read_bytes().count(b"\n")] = memory
        time.sleep(0.02)
    assert process.returncode == 0, output.read_text()
    settled = max(memory for lines, memory in seen.items() if steps // 4 <= lines <= steps // 3)
    late = max(memory for lines, memory in seen.items() if lines >= steps * 0.9)
    assert late <= GROWTH * settled, f"{settled:,} to {late:,} bytes"
