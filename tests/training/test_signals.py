"""What a scheduler sends: the run is saved, its exit code tells, and a second notice does not cut the save off."""

import signal
import time
from pathlib import Path

import pytest

from fewstep.storage import load_checkpoint
from tests.runs import Workshop, logged, start

STEPS = 200


@pytest.mark.parametrize("number", [signal.SIGUSR1, pytest.param(signal.SIGUSR2, marks=pytest.mark.slow)])
def test_a_notice_of_preemption_saves_and_tells_by_the_exit_code(
    workshop: Workshop, tmp_path: Path, number: signal.Signals
) -> None:
    flags = ["--checkpoint.every_n_steps=1000", "--trainer.val_check_interval=100", f"--run_dir={tmp_path}"]
    arguments = workshop.arguments("language_model", *flags, steps=STEPS)
    process = start([item for item in arguments if item != f"--trainer.val_check_interval={STEPS // 2}"])
    deadline = time.monotonic() + 120
    file = tmp_path / "csv" / "version_0" / "metrics.csv"
    while process.poll() is None and time.monotonic() < deadline:
        if file.exists() and file.read_text().count("\n") > 5:
            # The end of the job follows its notice, at once in the worst case.
            process.send_signal(number)
            process.send_signal(number)
            process.send_signal(signal.SIGTERM)
            break
        time.sleep(0.005)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 128 + number, errors
    assert errors.count("fewstep:") == 1
    assert "--ckpt_path last" in errors
    step = load_checkpoint(tmp_path / "checkpoints" / "last.ckpt")["global_step"]
    assert step == max(logged(tmp_path)["train/loss"]) + 1
    assert 5 <= step < STEPS
