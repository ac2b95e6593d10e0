"""Two processes train what one process would."""

import json
from pathlib import Path

import pytest
import torch

from fewstep.data import StepBatchSampler, prepare_corpus
from fewstep.storage import load_checkpoint
from tests.runs import BATCH_SIZE, Workshop, logged, start

SCRIPT = Path(__file__).with_name("recording_train.py")
STEPS = 4


@pytest.mark.parametrize("streaming", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_two_processes_share_the_data_and_end_with_one_model(
    workshop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, streaming: bool
) -> None:
    monkeypatch.setenv("RECORD", str(tmp_path))
    run_dir = tmp_path / "run"
    flags = [f"--run_dir={run_dir}", "--trainer.accelerator=cpu", "--trainer.devices=2", "--trainer.strategy=ddp"]
    flags += [f"--data.streaming={str(streaming).lower()}"]
    process = start(workshop.arguments("autoencoder", *flags, steps=STEPS), SCRIPT)
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert output.count("done after") == 1, "the first process alone speaks"

    steps = [read_steps(tmp_path / f"rank{rank}.jsonl") for rank in (0, 1)]
    both = [first["ids"] + second["ids"] for first, second in zip(*steps, strict=True)]
    assert len(both) == STEPS
    assert all(torch.isfinite(torch.tensor([row["loss"] for row in rank])).all() for rank in steps)
    if streaming:
        blocks = [tuple(block) for step in both for block in step]
        assert len(set(blocks)) > 0.9 * len(blocks), "each process has documents of its own"
    else:
        alone = StepBatchSampler(len(prepare_corpus(workshop.settings()).train), 2 * BATCH_SIZE, STEPS, seed=0)
        shared = [first["index"] + second["index"] for first, second in zip(*steps, strict=True)]
        assert [sorted(rows) for rows in shared] == [sorted(rows) for rows in alone]
        assert not any(set(first["index"]) & set(second["index"]) for first, second in zip(*steps, strict=True))

    weights = [torch.load(tmp_path / f"rank{rank}.pt") for rank in (0, 1)]
    trained = [name for name in weights[0] if "whitening" not in name]  # statistics are the first process's in the end
    assert trained
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in trained)
    assert load_checkpoint(run_dir / "checkpoints" / "last.ckpt")["global_step"] == STEPS
    assert len(logged(run_dir)["train/loss"]) == STEPS
    assert len(list((run_dir / "csv").iterdir())) == 1


def test_a_loss_that_is_bad_in_one_process_is_skipped_by_both(workshop: Workshop, tmp_path: Path) -> None:
    flags = [f"--run_dir={tmp_path}", "--trainer.accelerator=cpu", "--trainer.devices=2", "--trainer.strategy=ddp"]
    process = start(workshop.arguments("language_model", *flags, steps=STEPS), SCRIPT.with_name("poisoned_train.py"))
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    counts = logged(tmp_path)["train/skipped_steps"]
    assert [counts[step] for step in range(STEPS)] == [0, 0, 1, 1]
    checkpoint = load_checkpoint(tmp_path / "checkpoints" / "last.ckpt")
    assert all(torch.isfinite(weight).all() for weight in checkpoint["state_dict"].values())
    (state,) = checkpoint["optimizer_states"]
    assert {float(moments["step"]) for moments in state["state"].values()} == {STEPS - 1}


def read_steps(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text().splitlines()]
