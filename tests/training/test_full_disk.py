"""A disk that is full or closed to writing: one line, and the checkpoints from before it are whole."""

import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fewstep.cli.main import main
from fewstep.storage import load_checkpoint
from tests.runs import ROOT, Workshop

MOUNT = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c"]


def may_mount(folder: Path) -> bool:
    """Whether a small memory disk can be had here."""
    if shutil.which("unshare") is None:
        return False
    command = f"mount -t tmpfs -o size=1m none {shlex.quote(str(folder))}"
    return subprocess.run([*MOUNT, command], capture_output=True, timeout=30, check=False).returncode == 0


def on_a_small_disk(script: str, disk: Path, kept: Path, size_kib: int) -> subprocess.CompletedProcess[str]:
    """Run a shell script with a memory disk at ``disk``; what is on it in the end is copied to ``kept``."""
    places = {"DISK": shlex.quote(str(disk)), "KEPT": shlex.quote(str(kept))}
    whole = f"mount -t tmpfs -o size={size_kib}k none $DISK\n{script}\ncode=$?\ncp -r $DISK $KEPT\nexit $code"
    for name, value in places.items():
        whole = whole.replace(f"${name}", value)
    return subprocess.run([*MOUNT, whole], cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)


def train(arguments: list[str]) -> str:
    """The real command as a shell would take it."""
    return shlex.join([sys.executable, str(ROOT / "train.py"), *arguments])


@pytest.mark.slow
@pytest.mark.parametrize("room", [0.5, 2.5])
def test_a_full_disk_is_one_line_and_earlier_checkpoints_are_whole(
    workshop: Workshop, tmp_path: Path, room: float
) -> None:
    disk, kept = tmp_path / "disk", tmp_path / "kept"
    disk.mkdir()
    if not may_mount(disk):
        pytest.skip("no memory disk can be mounted here")
    sizes = [file.stat().st_size for file in (workshop.folder / "autoencoder" / "checkpoints").iterdir()]
    arguments = workshop.arguments("autoencoder", "--checkpoint.every_n_steps=1", f"--run_dir={disk / 'run'}")
    done = on_a_small_disk(train(arguments), disk, kept, int(room * max(sizes) / 1024))
    assert done.returncode == 2, done.stderr
    (line,) = (line for line in done.stderr.splitlines() if line.startswith("fewstep: error:"))
    assert "No space left on device" in line
    assert "last.ckpt" in line
    assert "Traceback" not in done.stderr
    left = sorted(file.name for file in (kept / "run" / "checkpoints").iterdir())
    assert left == ([] if room < 1 else ["last.ckpt", "previous.ckpt"])
    for name in left:
        assert load_checkpoint(kept / "run" / "checkpoints" / name)["global_step"] in (1, 2)


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
