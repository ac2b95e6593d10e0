"""A run that is stopped and resumed is the run that was not: data order, noise, optimizer, schedule, averages, logs."""

import shutil
import signal
import time
from pathlib import Path

import pytest
import torch

from fewstep.storage import load_checkpoint
from fewstep.training.command import main
from tests.runs import Workshop, logged, start

STEPS = 60
FLAGS = ["--trainer.val_check_interval=20", "--ema.decay=0.9", "--checkpoint.every_n_steps=1000"]
STATE = ("global_step", "state_dict", "current_model_state", "averaging_state", "optimizer_states", "lr_schedulers")


def stop_after_a_few_steps(arguments: list[str], run_dir: Path, *numbers: int) -> tuple[int, str]:
    """Send the signals when ten steps are logged. Returns exit code and stderr."""
    process = start(arguments)
    deadline = time.monotonic() + 90
    while process.poll() is None and time.monotonic() < deadline:
        files = list(run_dir.glob("csv/version_0/metrics.csv"))
        if files and files[0].read_text().count("\n") > 10:
            for number in numbers:
                process.send_signal(number)
            break
        time.sleep(0.005)
    _, errors = process.communicate(timeout=60)
    return process.returncode, errors


def assert_equal(one: object, other: object, place: str = "checkpoint") -> None:
    """Bit by bit, through dictionaries and lists."""
    if isinstance(one, dict):
        assert one.keys() == other.keys(), place
        for key in one:
            assert_equal(one[key], other[key], f"{place}/{key}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(other), place
        for index, (left, right) in enumerate(zip(one, other, strict=True)):
            assert_equal(left, right, f"{place}/{index}")
    elif isinstance(one, torch.Tensor):
        assert torch.equal(one, other), place
    else:
        assert one == other, place


def last_checkpoint(run_dir: Path) -> dict:
    return load_checkpoint(run_dir / "checkpoints" / "last.ckpt")


def assert_same_state(one: Path, other: Path, *more: str) -> None:
    """Two runs ended with the same weights, averages, moments and schedule."""
    expected, found = last_checkpoint(one), last_checkpoint(other)
    for key in (*STATE, *more):
        assert_equal(expected[key], found[key], key)


def assert_same_end(one: Path, other: Path) -> None:
    """Two runs ended in the same state, exported the same model and wrote the same samples."""
    assert_same_state(one, other)
    for file in (one / "model").glob("*.safetensors"):
        assert file.read_bytes() == (other / "model" / file.name).read_bytes()
    if (one / "samples.jsonl").exists():
        assert (one / "samples.jsonl").read_text() == (other / "samples.jsonl").read_text()


@pytest.mark.parametrize(
    ("stage", "number", "flags"),
    [
        pytest.param("autoencoder", signal.SIGINT, [], marks=pytest.mark.slow),
        ("flow", signal.SIGTERM, ["--trainer.accumulate_grad_batches=2"]),
        pytest.param("language_model", signal.SIGINT, ["--data.streaming=true"], marks=pytest.mark.slow),
    ],
)
def test_stopping_and_resuming_changes_nothing(
    workshop: Workshop, tmp_path: Path, stage: str, number: int, flags: list[str]
) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    arguments = workshop.arguments(stage, *FLAGS, *flags, steps=STEPS)
    assert main([*arguments, f"--run_dir={whole}"]) == 0
    code, errors = stop_after_a_few_steps([*arguments, f"--run_dir={broken}"], broken, number)
    assert code == 128 + number, errors
    assert errors.count("fewstep:") == 1 and "--ckpt_path last" in errors and "Traceback" not in errors
    first_part = logged(broken)["train/loss"]
    assert 10 <= len(first_part) < STEPS
    assert main([*arguments, f"--run_dir={broken}", "--ckpt_path=last"]) == 0

    expected, found = logged(whole), logged(broken)
    del expected["train/tokens_per_second"], found["train/tokens_per_second"]
    assert len(expected["train/loss"]) == STEPS
    assert len(expected["val/loss"]) == STEPS * (2 if "accumulate" in str(flags) else 1) // 20
    assert found == expected
    assert first_part.items() <= found["train/loss"].items()
    assert_same_end(whole, broken)
    checkpoint = last_checkpoint(whole)
    averaged, current = checkpoint["state_dict"], checkpoint["current_model_state"]
    assert any(not torch.equal(averaged[name], current[name]) for name in current)


def test_a_run_killed_before_its_export_is_exported_by_going_on(workshop: Workshop, tmp_path: Path) -> None:
    arguments = workshop.arguments("language_model", f"--run_dir={tmp_path}", "--ema.decay=0.9")
    assert main(arguments) == 0
    weights = (tmp_path / "model" / "language_model.safetensors").read_bytes()
    shutil.rmtree(tmp_path / "model")
    for _ in range(2):  # a finished run may be finished again
        assert main([*arguments, "--ckpt_path=last"]) == 0
        assert (tmp_path / "model" / "language_model.safetensors").read_bytes() == weights


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGUSR2])
def test_a_notice_of_preemption_saves_and_a_second_one_does_not_interrupt_it(
    workshop: Workshop, tmp_path: Path, number: signal.Signals
) -> None:
    flags = ["--checkpoint.every_n_steps=1000", "--trainer.val_check_interval=100", f"--run_dir={tmp_path}"]
    arguments = workshop.arguments("language_model", *flags, steps=4 * STEPS)
    # The end of the job follows its notice, at once in the worst case.
    code, errors = stop_after_a_few_steps(arguments, tmp_path, number, number, signal.SIGTERM)
    assert code == 128 + number, errors
    assert errors.count("fewstep:") == 1 and "--ckpt_path last" in errors
    step = last_checkpoint(tmp_path)["global_step"]
    assert step == max(logged(tmp_path)["train/loss"]) + 1 and 5 <= step < 4 * STEPS
