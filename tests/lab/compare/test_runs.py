"""Training runs of a comparison: equal compute from one teacher, resumed where they stopped."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from fewstep.errors import UserError
from fewstep.lab.compare.runs import Run, objective_of, planned, settings_of, train
from fewstep.objectives import MeanFlow, ProgressiveDistillation
from fewstep.schedules import LogitNormalTime
from tests.runs import CONFIGS

FLOW = CONFIGS / "flow.yaml"


def plan(names: Sequence[str], out: Path, steps: Sequence[int] = (1, 2, 4, 8)) -> list[Run]:
    return planned(names, "text", out, budget=2100, teacher_steps=700, steps=steps)


def test_every_objective_has_the_same_compute_and_starts_from_the_teacher(tmp_path: Path) -> None:
    files = (CONFIGS / "objectives").glob("*.yaml")
    names = [file.stem for file in files if file.stem not in ("flow_matching", "progressive")]
    teacher, *runs = plan(["flow_matching", *names, "progressive"], tmp_path)
    assert (teacher.steps, teacher.start) == (700, None)
    assert (runs[0].name, runs[0].steps) == ("flow_matching", 700)
    for run in runs[: len(names) + 1]:
        assert abs(run.passes - 2100) <= run.passes / run.steps / 2 + 1e-9, run.name
        assert run.start == teacher.model
        assert run.taught == objective_of(FLOW, run.settings, {}).needs_teacher


def test_rounds_of_progressive_distillation_start_from_each_other_and_share_the_budget(tmp_path: Path) -> None:
    teacher, *rounds = plan(["progressive"], tmp_path)
    assert [run.answers for run in rounds] == [(8,), (4,), (2,), (1,)]
    assert [run.start for run in rounds] == [teacher.model, *(run.model for run in rounds[:-1])]
    assert [run.passes for run in rounds] == [525, 1050, 1575, 2100]
    assert rounds[2].flags == {"model.objective.num_steps": 2, "model.objective.teacher_steps": 2}
    with pytest.raises(UserError, match="goes from 4 to 3, which does not divide it"):
        plan(["progressive"], tmp_path, steps=(3, 4))


def test_an_objective_is_what_training_makes_of_both_files() -> None:
    objective = objective_of(FLOW, settings_of("mean_flow"), {})
    assert isinstance(objective, MeanFlow)
    assert isinstance(objective.time_sampler, LogitNormalTime)  # of flow.yaml
    assert objective.adaptive_power == 0.5  # of its own
    own = objective_of(FLOW, settings_of("progressive"), {"num_steps": 2, "teacher_steps": 4})
    assert isinstance(own, ProgressiveDistillation)
    assert own.teacher_nfe == 8


def test_a_run_that_stopped_before_its_model_resumes_from_its_checkpoint_and_adds_up_its_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[list[str]] = []
    monkeypatch.setattr("fewstep.training.command.run_training", calls.append)
    run, *_ = plan(["flow_matching"], tmp_path)
    (run.folder / "checkpoints").mkdir(parents=True)
    (run.folder / "checkpoints" / "last.ckpt").write_bytes(b"")
    assert train(run, ["fit"], "model")
    assert calls == [["fit", "--ckpt_path", "last"]]
    first = run.seconds
    assert train(run, ["fit"], "model")
    assert run.seconds > first
    with pytest.raises(UserError, match="was trained otherwise"):
        train(run, ["fit", "--more"], "model")
    (run.model).mkdir()
    (run.model / "config.json").write_text("{}")
    assert not train(run, ["fit"], "model")
    (run.folder / "training.json").unlink()
    with pytest.raises(UserError, match="not this command's"):
        train(run, json.loads('["fit"]'), "model")
