"""A loss or gradient that is not finite changes nothing, is counted, and after too many in a row end the run."""

import math
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fewstep.cli.main import main
from fewstep.storage import load_checkpoint
from fewstep.training import AutoencoderModule, LanguageModelModule
from fewstep.training.module import TrainingModule
from fewstep.types import LossOutput
from tests.runs import BATCH_SIZE, BLOCK_SIZE, Workshop, logged
from tests.training.test_resume import assert_equal

STEPS = 8


def poison(monkeypatch: pytest.MonkeyPatch, steps: set[int], kind: str) -> list[dict[str, torch.Tensor]]:
    """Make the first example's loss bad at ``steps``; returns the weights before each step, filled as they come."""
    seen = []
    honest = {stage: stage.batch_loss for stage in (AutoencoderModule, LanguageModelModule)}

    def bad(self: TrainingModule, batch: dict[str, torch.Tensor], generator: torch.Generator) -> LossOutput:
        output = honest[type(self)](self, batch, generator)
        if not self.training:
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

    for stage in honest:
        monkeypatch.setattr(stage, "batch_loss", bad)
    return seen


@pytest.mark.parametrize(("kind", "accumulate"), [("constant", 1), ("gradient", 2), ("infinite", 1)])
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


def test_a_resumed_run_counts_on_and_a_streak_writes_no_checkpoint_that_is_only_due(
    workshop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison(monkeypatch, {1, 3, 4, 5}, "infinite")
    flags = [f"--run_dir={tmp_path}", "--nonfinite.max_in_a_row=3", "--checkpoint.every_n_steps=1"]
    assert main(["train", *workshop.arguments("language_model", *flags, steps=STEPS)]) == 2
    previous, last = (load_checkpoint(tmp_path / "checkpoints" / f"{name}.ckpt") for name in ("previous", "last"))
    assert (previous["global_step"], last["global_step"]) == (3, 5), "the last good step, and that before the end"
    assert_equal(previous["current_model_state"], last["current_model_state"])
    monkeypatch.undo()
    arguments = workshop.arguments("language_model", *flags, "--ckpt_path=last", steps=STEPS)
    assert main(["train", *arguments]) == 0
    shutil.rmtree(tmp_path / "csv" / "version_0")
    counts = logged(tmp_path)["train/skipped_steps"]
    assert [counts[step] for step in sorted(counts)] == [3] * (STEPS - 5)


@pytest.mark.parametrize(("most", "last"), [(3, 5), (1, 3)])
def test_after_too_many_the_run_ends_and_keeps_the_batches_and_the_last_good_weights(
    workshop: Workshop,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    most: int,
    last: int,
) -> None:
    poison(monkeypatch, {3, 4, 5}, "infinite")
    flags = [f"--run_dir={tmp_path}", f"--nonfinite.max_in_a_row={most}", "--trainer.accumulate_grad_batches=2"]
    capsys.readouterr()
    assert main(["train", *workshop.arguments("autoencoder", *flags, steps=STEPS)]) == 2
    errors = capsys.readouterr().err
    file = tmp_path / "nonfinite" / f"step-{last}-rank-0.pt"
    assert f"not finite at step {last}, the last of {most} such steps" in errors and str(file) in errors
    batches = torch.load(file, weights_only=True)
    assert [batch["ids"].shape for batch in batches] == [(BATCH_SIZE, BLOCK_SIZE)] * 2
    assert not set(batches[0]["index"].tolist()) & set(batches[1]["index"].tolist())
    checkpoint = load_checkpoint(tmp_path / "checkpoints" / "last.ckpt")
    assert checkpoint["global_step"] == last
    assert checkpoint["callbacks"]["SkipNonFinite"] == {"skipped": last - 3, "in_a_row": last - 3}
