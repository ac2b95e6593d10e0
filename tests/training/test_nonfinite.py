"""A loss or gradient that is not finite changes nothing, is counted, and after too many in a row can be replayed."""

import math
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fewstep.cli.main import main
from fewstep.storage import load_checkpoint
from fewstep.training import module
from fewstep.training.callbacks import SkipNonFinite
from fewstep.training.stage import Stage
from fewstep.types import LossOutput
from tests.runs import ROOT, Workshop, logged, start
from tests.training.test_resume import assert_equal

STEPS = 8


def poison(monkeypatch: pytest.MonkeyPatch, steps: set[int], kind: str) -> list[dict[str, torch.Tensor]]:
    """Make the first example's loss bad at ``steps``; returns the weights before each step, filled as they come."""
    honest, seen = Stage.batch_loss, []

    def bad(self: Stage, batch: dict[str, torch.Tensor], generator: torch.Generator, *, held_out: bool) -> LossOutput:
        output = honest(self, batch, generator, held_out=held_out)
        if held_out:
            return output
        seen.append({name: value.clone() for name, value in self.state_dict().items()})
        if self.global_step not in steps:
            return output
        if kind == "constant":  # the loss is NaN, its own gradient is finite
            return replace(output, loss=output.loss + math.nan)
        if kind == "gradient":  # the loss is finite, its gradient is not
            weight = next(weight for weight in self.parameters() if weight.requires_grad)
            return replace(output, loss=output.loss + (weight.flatten()[0].detach() - weight.flatten()[0]).abs().sqrt())
        spoiled = output.per_example.clone()
        spoiled[1] = math.inf
        return replace(output, loss=output.loss * math.inf, per_example=spoiled, terms={"part": output.loss * math.inf})

    monkeypatch.setattr(Stage, "batch_loss", bad)
    return seen


@pytest.mark.parametrize("kind", ["constant", "gradient", "infinite"])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_bad_step_changes_no_weight_and_no_moment_and_is_counted(
    workshop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, accumulate: int
) -> None:
    seen = poison(monkeypatch, {3, 5}, kind)
    flags = [f"--trainer.accumulate_grad_batches={accumulate}", f"--run_dir={tmp_path}"]
    assert main(["train", *workshop.arguments("language_model", *flags, steps=STEPS)]) == 0
    before = seen[::accumulate]
    assert len(before) == STEPS
    for step in range(1, STEPS - 1):  # the rate of the first step is zero
        same = all(torch.equal(before[step][name], before[step + 1][name]) for name in before[step])
        assert same == (step in (3, 5)), step
    metrics = logged(tmp_path)
    counts = metrics["train/skipped_steps"]
    assert [counts[step] for step in sorted(counts)] == [0, 0, 0, 1, 1, 2, 2, 2]
    assert {3, 5} == {step for step, norm in metrics["train/grad_norm"].items() if not math.isfinite(norm)}
    (state,) = load_checkpoint(tmp_path / "checkpoints" / "last.ckpt")["optimizer_states"]
    assert {float(moments["step"]) for moments in state["state"].values()} == {STEPS - 2}
    assert all(torch.isfinite(moments["exp_avg_sq"]).all() for moments in state["state"].values())


def test_without_a_bad_step_nothing_is_different(
    workshop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = workshop.arguments("autoencoder", steps=STEPS)
    assert main(["train", *arguments, f"--run_dir={tmp_path / 'with'}"]) == 0
    for hook in ("on_before_optimizer_step", "on_train_batch_start", "on_train_batch_end"):
        monkeypatch.delattr(SkipNonFinite, hook)
    monkeypatch.setattr(module, "spread_nonfinite", lambda loss: loss)
    assert main(["train", *arguments, f"--run_dir={tmp_path / 'without'}"]) == 0
    one, other = (load_checkpoint(tmp_path / name / "checkpoints" / "last.ckpt") for name in ("with", "without"))
    for key in ("state_dict", "current_model_state", "optimizer_states"):
        assert_equal(one[key], other[key], key)
    assert logged(tmp_path / "with")["train/loss"] == logged(tmp_path / "without")["train/loss"]


def test_a_resumed_run_counts_on_and_a_streak_writes_no_checkpoint_that_is_only_due(
    workshop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison(monkeypatch, {1, 3, 4, 5}, "infinite")
    flags = [f"--run_dir={tmp_path}", "--nonfinite.max_in_a_row=3", "--checkpoint.every_n_steps=1"]
    assert main(["train", *workshop.arguments("language_model", *flags, steps=STEPS)]) == 2
    checkpoints = tmp_path / "checkpoints"
    assert load_checkpoint(checkpoints / "last.ckpt")["global_step"] == 3, "the last good step"
    monkeypatch.undo()
    arguments = workshop.arguments("language_model", *flags, "--ckpt_path=last", steps=STEPS)
    assert main(["train", *arguments]) == 0
    shutil.rmtree(tmp_path / "csv" / "version_0")
    counts = logged(tmp_path)["train/skipped_steps"]
    assert [counts[step] for step in sorted(counts)] == [1] * (STEPS - 3)


def test_after_too_many_the_step_is_told_kept_and_replayed(
    workshop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    poison(monkeypatch, {3, 4, 5}, "infinite")
    flags = [f"--run_dir={tmp_path}", "--nonfinite.max_in_a_row=3", "--trainer.accumulate_grad_batches=2"]
    capsys.readouterr()
    assert main(["train", *workshop.arguments("autoencoder", *flags, "--ema.decay=0.9", steps=STEPS)]) == 2
    errors = capsys.readouterr().err
    assert "not finite at step 5, the last of 3 such steps" in errors
    file = tmp_path / "nonfinite" / "step-5-rank-0.ckpt"
    assert f"fewstep replay {file}" in errors
    before = listing(tmp_path)
    assert main(["replay", str(file)]) == 1
    out = capsys.readouterr().out
    assert "step 5 of process 0: loss inf, inf" in out
    assert "weights that are not finite: 0 of" in out
    assert "terms of the loss that are not finite: part" in out
    assert "examples whose loss is not finite (batch:position): 0:1, 1:1" in out
    assert listing(tmp_path) == before, "a replay writes nothing"
    monkeypatch.undo()
    assert main(["replay", str(file)]) == 0
    assert "everything is finite this time" in capsys.readouterr().out


def test_a_replay_is_the_very_step(
    workshop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # The gradient is bad, the loss is what it would have been: noise, weights and batch are all in it.
    poison(monkeypatch, {3}, "gradient")
    flags = [f"--run_dir={tmp_path}", "--nonfinite.max_in_a_row=1", "--ema.decay=0.9"]
    for stage in ("flow", "autoencoder"):
        assert main(["train", *workshop.arguments(stage, *flags, "--overwrite", steps=STEPS)]) == 2
        loss = logged(tmp_path)["train/loss"].get(3)
        capsys.readouterr()
        assert main(["replay", str(tmp_path / "nonfinite" / "step-3-rank-0.ckpt")]) == 1
        out = capsys.readouterr().out
        honest = reference_loss(workshop, tmp_path / f"whole-{stage}", stage, monkeypatch)
        assert f"loss {honest:g}\n" in out
        assert loss is None or loss == honest
        assert "gradients that are not finite: 1 of" in out
        poison(monkeypatch, {3}, "gradient")


def reference_loss(workshop: Workshop, run_dir: Path, stage: str, monkeypatch: pytest.MonkeyPatch) -> float:
    """The loss of step 3 in a run that nothing was done to."""
    monkeypatch.undo()
    assert main(["train", *workshop.arguments(stage, "--ema.decay=0.9", f"--run_dir={run_dir}", steps=STEPS)]) == 0
    return logged(run_dir)["train/loss"][3]


def test_a_file_that_is_no_step_is_one_line(
    workshop: Workshop, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = workshop.folder / "autoencoder" / "checkpoints" / "last.ckpt"
    for file, told in ((tmp_path / "none", "does not exist"), (checkpoint, "holds no step to replay")):
        assert main(["replay", str(file)]) == 2
        errors = capsys.readouterr().err
        assert errors.count("\n") == 1
        assert told in errors


def listing(folder: Path) -> dict[str, int]:
    """Every file below a folder with its time of change."""
    return {str(file): file.stat().st_mtime_ns for file in folder.rglob("*") if file.is_file()}


@pytest.mark.slow
def test_a_run_whose_rate_blows_it_up_is_replayed_by_the_real_commands(workshop: Workshop, tmp_path: Path) -> None:
    flags = ["--model.optimizer.learning_rate=1e30", "--model.optimizer.warmup_steps=0", "--nonfinite.max_in_a_row=2"]
    process = start(workshop.arguments("language_model", *flags, f"--run_dir={tmp_path}"))
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 2, errors
    assert errors.count("fewstep: error:") == 1
    assert "Traceback" not in errors
    file = tmp_path / "nonfinite" / "step-2-rank-0.ckpt"
    source = "import sys; from fewstep.cli.main import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", source, "replay", str(file)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1, done.stderr
    assert "weights that are not finite: 0 of" in done.stdout
    assert "loss nan" in done.stdout or "loss inf" in done.stdout
    assert "gradients that are not finite" in done.stdout
