"""Long runs do not grow: the resident memory of a process is flat once it has settled."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.runs import ROOT, Workshop

GROWTH = 1.05
"""The memory at the end over that after the first third."""
REPORT = """
import gc, os, sys
from pathlib import Path
import torch
from fewstep.pipeline import TextGenerator

def resident():
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

torch.set_num_threads(1)
model, count = sys.argv[1], int(sys.argv[2])
generator = TextGenerator.from_pretrained(model)
for number in range(count):
    generator.generate(4, 4, seed=number)
    if number == count // 3:
        print(resident())
print(resident())
"""

needs_proc = pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads memory from /proc")


def resident(number: int) -> int:
    """Bytes of memory of a running process."""
    return int(Path(f"/proc/{number}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@needs_proc
@pytest.mark.slow
def test_training_does_not_grow(workshop: Workshop, tmp_path: Path) -> None:
    steps = 500
    flags = ["--checkpoint.every_n_steps=20", f"--run_dir={tmp_path}"]
    arguments = workshop.arguments("flow", *flags, f"--trainer.val_check_interval={steps // 10}", steps=steps)
    command = [sys.executable, str(ROOT / "train.py"), *arguments]
    output = tmp_path.with_suffix(".txt")
    with output.open("w") as stream:
        process = subprocess.Popen(
            command, cwd=ROOT, stdout=stream, stderr=stream, env={**os.environ, "OMP_NUM_THREADS": "1"}
        )
    file, seen = tmp_path / "csv" / "version_0" / "metrics.csv", {}
    while process.poll() is None:
        if file.exists():
            lines = file.read_bytes().count(b"\n")
            with_process = resident(process.pid)
            if with_process:
                seen[lines] = with_process
        time.sleep(0.02)
    assert process.returncode == 0, output.read_text()
    settled = max(memory for lines, memory in seen.items() if steps // 4 <= lines <= steps // 3)
    late = max(memory for lines, memory in seen.items() if lines >= steps * 0.9)
    assert late <= GROWTH * settled, f"{settled:,} to {late:,} bytes"


@needs_proc
@pytest.mark.slow
def test_generating_does_not_grow() -> None:
    model = ROOT / "tests" / "fixtures" / "model_v1"
    command = [sys.executable, "-c", REPORT, str(model), "200"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600, check=True)
    settled, late = (int(line) for line in done.stdout.split())
    assert late <= GROWTH * settled, f"{settled:,} to {late:,} bytes"
