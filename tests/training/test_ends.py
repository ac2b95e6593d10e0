"""Wherever training ends, its last step is saved, and the resumed run is the unbroken one; so at every pass."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Trainer
from lightning.pytorch.callbacks import Timer

from fewstep.cli.main import main
from fewstep.errors import UserError
from fewstep.training import LanguageModelModule
from tests.runs import Workshop, logged
from tests.training.test_resume import assert_same_end, last_checkpoint

STEPS = 12
FLAGS = ["--trainer.val_check_interval=4", "--ema.decay=0.9"]
EARLY = '{"class_path": "EarlyStopping", "init_args": {"monitor": "val/loss", "patience": 1, "min_delta": 100}}'


def command(workshop: Workshop, run_dir: Path, *flags: str) -> list[str]:
    return ["train", *workshop.arguments("language_model", *FLAGS, f"--run_dir={run_dir}", *flags, steps=STEPS)]


@pytest.fixture(scope="module")
def whole(workshop: Workshop) -> Path:
    """The unbroken run."""
    run_dir = workshop.folder / "unbroken"
    assert main(command(workshop, run_dir)) == 0
    return run_dir


def stop_after_five(timer: Timer, trainer: Trainer) -> None:
    """Lightning's timer when the time is over."""
    trainer.should_stop |= trainer.global_step == 5


@pytest.mark.parametrize(
    ("flags", "resume", "step"),
    [
        (["--trainer.max_time=00:01:00:00"], [], 5),
        ([f"--trainer.callbacks=[{EARLY}]"], ["--trainer.callbacks=null"], 8),
    ],
)
def test_a_run_that_the_trainer_stops_is_saved_and_goes_on(
    workshop: Workshop,
    whole: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    flags: list[str],
    resume: list[str],
    step: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    capsys.readouterr()
    with monkeypatch.context() as clock:
        clock.setattr(Timer, "_check_time_remaining", stop_after_five)
        clock.setattr(Timer, "state_dict", lambda _: {"time_elapsed": {"train": 1e4}})
        assert main(command(workshop, tmp_path, *flags)) == 0
    assert f"stopped after {step} of 12 steps; model in" in capsys.readouterr().out
    assert last_checkpoint(tmp_path)["global_step"] == step
    assert main(command(workshop, tmp_path)) == 2
    assert "go on with it by --ckpt_path last" in capsys.readouterr().err
    assert main(command(workshop, tmp_path, *resume, "--ckpt_path=last")) == 0
    assert "done after 12 steps" in capsys.readouterr().out
    assert logged(tmp_path)["train/loss"] == logged(whole)["train/loss"]
    assert logged(whole)["val/loss"].items() <= logged(tmp_path)["val/loss"].items()
    assert_same_end(whole, tmp_path)


def test_a_run_stopped_before_its_first_step_leaves_its_folder_free(
    workshop: Workshop, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for _ in range(2):
        assert main(command(workshop, tmp_path, "--trainer.max_time=00:00:00:00")) == 0
        assert "stopped before the first step" in capsys.readouterr().out
    assert not (tmp_path / "model").exists()


def planted(monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    """Let the run fail at step 7, or in the validation after step 8."""
    honest = LanguageModelModule.batch_loss

    def failing(self: LanguageModelModule, *given: Any) -> Any:
        batch = self.trainer.fit_loop.epoch_loop.batch_progress.current.ready
        if self.training and place == "step" and self.global_step == 7 and batch % 2 == 0:
            raise UserError("planted")
        if not self.training and place == "validation" and self.global_step == 8:
            raise UserError("planted")
        return honest(self, *given)

    monkeypatch.setattr(LanguageModelModule, "batch_loss", failing)


@pytest.mark.parametrize(("place", "step"), [("step", 7), ("validation", 8)])
def test_a_run_that_fails_is_saved_before_it_ends(
    workshop: Workshop, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, step: int
) -> None:
    with monkeypatch.context() as failing:
        planted(failing, place)
        assert main(command(workshop, tmp_path)) == 2
    assert last_checkpoint(tmp_path)["global_step"] == step
    assert not (tmp_path / "model").exists()
    assert main(command(workshop, tmp_path, "--ckpt_path=last")) == 0
    assert logged(tmp_path)["train/loss"] == logged(whole)["train/loss"]
    assert_same_end(whole, tmp_path)


@pytest.mark.parametrize(
    "flags",
    [
        ["--trainer.limit_train_batches=4", "--trainer.accumulate_grad_batches=2"],
        ["--trainer.limit_train_batches=3", "--data.streaming=true"],
    ],
)
def test_every_pass_has_new_batches_and_a_resumed_run_has_the_same(
    workshop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: list[str]
) -> None:
    seen: list[list[int]] = []
    honest = LanguageModelModule.batch_loss

    def watched(self: LanguageModelModule, batch: dict[str, torch.Tensor], generator: torch.Generator) -> Any:
        if self.training:
            seen.append(batch["index"].tolist())
        return honest(self, batch, generator)

    monkeypatch.setattr(LanguageModelModule, "batch_loss", watched)
    assert main(command(workshop, tmp_path / "whole", *flags)) == 0
    unbroken, accumulated = list(seen), 2 if "accumulate" in str(flags) else 1
    rows = [row for batch in unbroken for row in batch]
    assert len(set(rows)) == len(rows) == 4 * STEPS * accumulated
    seen.clear()
    with monkeypatch.context() as failing:
        planted(failing, "step")
        assert main(command(workshop, tmp_path / "broken", *flags)) == 2
    assert main(command(workshop, tmp_path / "broken", *flags, "--ckpt_path=last")) == 0
    assert seen == [*unbroken[: 8 * accumulated - 1], *unbroken[7 * accumulated :]]
    assert_same_end(tmp_path / "whole", tmp_path / "broken")
