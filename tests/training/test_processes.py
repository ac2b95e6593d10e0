"""Two processes train what one process would."""

import json
from pathlib import Path

import pytest
import torch

from fewstep.cli.main import EXIT_USER_ERROR
from fewstep.storage import load_checkpoint
from tests.runs import Workshop, logged, start

SCRIPT = Path(__file__).with_name("recording_train.py")
STEPS = 4


@pytest.mark.parametrize(
    ("stage", "flags"),
    [
        ("flow", ["--trainer.accumulate_grad_batches=2"]),
        pytest.param("language_model", [], marks=pytest.mark.slow),
        pytest.param("head", [], marks=pytest.mark.slow),
    ],
)
def test_two_processes_train_what_one_does_that_accumulates_their_batches(
    workshop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str, flags: list[str]
) -> None:
    """Same rows, same noise, same mean of the gradients: losses, weights and averages agree but for rounding."""
    accumulated = 2 if flags else 1
    common = ["--trainer.accelerator=cpu", "--data.num_validation_blocks=19", "--ema.decay=0.9"]
    # The reference first: five batches are validated on, which two processes cannot share evenly.
    records = {}
    for strategy, world_size in (("auto", 1), ("ddp", 2)):
        record = records[strategy] = tmp_path / strategy
        record.mkdir()
        monkeypatch.setenv("RECORD", str(record))
        batches = accumulated * (2 if world_size == 1 else 1)
        own = [f"--trainer.accumulate_grad_batches={batches}", f"--trainer.val_check_interval={2 * batches}"]
        own += [f"--run_dir={record / 'run'}", f"--trainer.devices={world_size}", f"--trainer.strategy={strategy}"]
        process = start(workshop.arguments(stage, *common, *own, steps=STEPS), SCRIPT)
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
    assert_same_training(records["auto"], records["ddp"], 2 * accumulated * STEPS)


def assert_same_training(one: Path, two: Path, num_batches: int) -> None:
    """What one process and what two recorded."""
    alone = read_steps(one / "rank0.jsonl")
    shared = [read_steps(two / f"rank{rank}.jsonl") for rank in (0, 1)]
    shared = [row for rows in zip(*shared, strict=True) for row in rows]
    assert len(alone) == len(shared) == num_batches
    assert [row["index"] for row in shared] == [row["index"] for row in alone]
    assert [row["loss"] for row in shared] == pytest.approx([row["loss"] for row in alone], rel=1e-5)
    for name in ("val/loss", "train/grad_norm"):
        expected, found = (logged(record / "run")[name] for record in (one, two))
        assert len(expected) == (2 if name == "val/loss" else STEPS)
        assert found == pytest.approx(expected, rel=1e-5), name
    expected, found = (load_checkpoint(record / "run" / "checkpoints" / "last.ckpt") for record in (one, two))
    for key in ("current_model_state", "state_dict"):
        assert expected[key].keys() == found[key].keys()
        for name, weight in expected[key].items():
            torch.testing.assert_close(found[key][name], weight, rtol=1e-4, atol=1e-6, msg=f"{key} {name}")


def poisoned(workshop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *flags: str) -> tuple[int, str]:
    """Two processes, the second of which has a NaN at step 2. Returns exit code and stderr."""
    monkeypatch.setenv("RECORD", str(tmp_path))
    monkeypatch.setenv("POISONED", "1")
    own = [
        "--trainer.accelerator=cpu",
        "--trainer.devices=2",
        "--trainer.strategy=ddp",
        f"--run_dir={tmp_path / 'run'}",
    ]
    process = start(workshop.arguments("language_model", *own, *flags, steps=STEPS), SCRIPT)
    _, errors = process.communicate(timeout=300)
    return process.returncode, errors


@pytest.mark.slow
def test_a_loss_that_is_bad_in_one_process_is_skipped_by_both(
    workshop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, errors = poisoned(workshop, tmp_path, monkeypatch)
    assert code == 0, errors
    counts = logged(tmp_path / "run")["train/skipped_steps"]
    assert [counts[step] for step in range(STEPS)] == [0, 0, 1, 1]
    checkpoint = load_checkpoint(tmp_path / "run" / "checkpoints" / "last.ckpt")
    assert all(torch.isfinite(weight).all() for weight in checkpoint["state_dict"].values())
    (state,) = checkpoint["optimizer_states"]
    assert {float(moments["step"]) for moments in state["state"].values()} == {STEPS - 1}


@pytest.mark.slow
def test_a_loss_that_stays_bad_in_one_process_ends_the_run_and_keeps_its_batch(
    workshop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, errors = poisoned(workshop, tmp_path, monkeypatch, "--nonfinite.max_in_a_row=1")
    assert code == EXIT_USER_ERROR and "Traceback" not in errors, errors
    files = [tmp_path / "run" / "nonfinite" / f"step-2-rank-{rank}.pt" for rank in (0, 1)]
    assert str(files[0]) in errors
    rows = [torch.load(file, weights_only=True)[0]["index"].tolist() for file in files]
    assert not set(rows[0]) & set(rows[1])


def read_steps(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text().splitlines()]
