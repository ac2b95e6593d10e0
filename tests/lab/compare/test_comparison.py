"""Equal training compute, rows that are measured once, and settings that a model rules out."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from fewstep.errors import UserError
from fewstep.evaluation.scored_text import ScoredText
from fewstep.lab.compare.backends import KeptScores
from fewstep.lab.compare.command import settings_of
from fewstep.lab.compare.comparison import Compared, Quality, RowsFile, Run, measured, objective_of, planned
from fewstep.metrics.intervals import Interval
from fewstep.objectives import MeanFlow, ProgressiveDistillation
from fewstep.schedules import LogitNormalTime
from tests.runs import CONFIGS

FLOW = CONFIGS / "flow.yaml"
STRENGTHS = (0.0, 1.0)


def plan(names: Sequence[str], out: Path, steps: Sequence[int] = (1, 2, 4, 8), budget: int = 2100) -> list[Run]:
    return planned(names, settings_of, FLOW, out, budget=budget, teacher_steps=700, steps=steps)


def test_every_objective_has_the_same_compute_and_starts_from_the_teacher(tmp_path: Path) -> None:
    names = [
        file.stem
        for file in (CONFIGS / "objectives").glob("*.yaml")
        if file.stem not in ("flow_matching", "progressive")
    ]
    teacher, *runs = plan(["flow_matching", *names, "progressive"], tmp_path)
    assert (teacher.steps, teacher.start) == (700, None)
    assert (runs[0].name, runs[0].steps) == ("flow_matching", 700)
    for run in runs[: len(names) + 1]:
        assert abs(run.passes - 2100) <= run.passes / run.steps / 2 + 1e-9, run.name
        assert run.start == teacher.model
        assert run.taught == objective_of(FLOW, run.settings, {}).needs_teacher


def test_rounds_of_progressive_distillation_go_on_from_each_other_and_share_the_budget(tmp_path: Path) -> None:
    teacher, *rounds = plan(["progressive"], tmp_path)
    assert [run.answers for run in rounds] == [(8,), (4,), (2,), (1,)]
    assert [run.start for run in rounds] == [teacher.model, *(run.model for run in rounds[:-1])]
    assert [run.passes for run in rounds] == [525, 1050, 1575, 2100]
    assert "--model.objective.num_steps=2" in rounds[2].flags
    assert "--model.objective.teacher_steps=2" in rounds[2].flags
    _, first, last = plan(["progressive"], tmp_path, steps=(1, 4))
    assert "--model.objective.teacher_steps=4" in last.flags
    assert first.passes == pytest.approx(1050, abs=3)
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


class FakeBench:
    """Counts what it is asked to measure; the model of "end" tells the end of a trajectory only."""

    kind = "text"
    quality = Quality("perplexity", lambda samples: samples.mean((-2, -1)))
    caption = "A caption."

    def __init__(self, version: str = "a", readouts: tuple[str, ...] = ("parallel", "head")) -> None:
        self.version = version
        self.readouts: tuple[str | None, ...] = readouts
        self.asked: list[tuple[str, int, float]] = []

    def stamp(self, folder: Path | None) -> str:
        return f"{self.version} {folder and folder.parent.name}"

    def incompatibility(self, folder: Path, num_steps: int, reinjection: float) -> str | None:
        return "no way" if folder.parent.name == "end" and num_steps > 1 and reinjection < 1 else None

    def rows(self, folder: Path, num_steps: int, reinjection: float) -> list[Compared]:
        self.asked.append((folder.parent.name, num_steps, reinjection))
        return [
            Compared("", readout, num_steps, reinjection, quality=2.0, samples=((1.5, 4.0),))
            for readout in self.readouts
        ]

    def yardsticks(self) -> list[Compared]:
        return [Compared("real", None, None, None, quality=1.0, quality_interval=Interval(0.9, 1.1))]


def run_of(name: str, folder: Path, answers: tuple[int, ...] | None = None, passes: float = 10.0) -> Run:
    folder.mkdir(parents=True, exist_ok=True)
    return Run(name, folder, Path("unused.yaml"), (), 5, passes, answers=answers)


def table(
    bench: FakeBench,
    runs: list[Run],
    out: Path,
    steps: Sequence[int] = (1, 2),
    provenance: dict[str, Any] | None = None,
) -> list[Compared]:
    return measured(bench, runs, {run.folder: 3.0 for run in runs}, steps, STRENGTHS, out, lambda *_: None, provenance)


def test_every_setting_has_a_row_a_readout_and_what_is_ruled_out_says_so(tmp_path: Path) -> None:
    bench = FakeBench()
    runs = [run_of("flow", tmp_path / "flow"), run_of("end", tmp_path / "end")]
    real, *rows = table(bench, runs, tmp_path)
    assert (real.objective, real.quality) == ("real", 1.0)
    assert len(rows) == 2 * 2 * 2 * 2
    ruled_out = [(row.objective, row.readout, row.num_steps, row.reinjection) for row in rows if row.ruled_out]
    assert ruled_out == [("end", "parallel", 2, 0.0), ("end", "head", 2, 0.0)]
    assert ("end", 2, 0.0) not in bench.asked
    assert {(row.passes, row.seconds) for row in rows} == {(10.0, 3.0)}


def test_a_round_answers_for_its_own_number_of_steps_and_its_seconds_hold_those_before(tmp_path: Path) -> None:
    bench, folder = FakeBench(), tmp_path / "progressive"
    first = run_of(folder.name, folder / "round_2", (2,), 5.0)
    second = run_of(folder.name, folder / "round_1", (1,), 10.0)
    rows = table(bench, [first, second], tmp_path)[1:]
    assert bench.asked == [("round_1", 1, 0.0), ("round_2", 2, 0.0), ("round_1", 1, 1.0), ("round_2", 2, 1.0)]
    assert {(row.num_steps, row.passes, row.seconds) for row in rows} == {(1, 10.0, 6.0), (2, 5.0, 3.0)}


def test_what_is_measured_is_not_measured_again_and_rows_of_another_protocol_are_refused(tmp_path: Path) -> None:
    runs = [run_of("flow", tmp_path / "flow")]
    whole = table(FakeBench(), runs, tmp_path)
    again = FakeBench()
    assert table(again, runs, tmp_path) == whole
    assert not again.asked
    more = FakeBench()
    assert len(table(more, runs, tmp_path, steps=(1, 4))) == 1 + 8
    assert more.asked == [("flow", 4, 0.0), ("flow", 4, 1.0)]
    only = table(FakeBench(readouts=("parallel",)), runs, tmp_path)
    assert only == [row for row in whole if row.readout in (None, "parallel")]
    with pytest.raises(UserError, match="rows of another scoring protocol or model"):
        table(FakeBench("b"), runs, tmp_path)


def test_a_row_keeps_the_provenance_it_was_measured_with_and_one_from_before_there_was_any_counts(
    tmp_path: Path,
) -> None:
    runs = [run_of("end", tmp_path / "end")]
    ours, theirs = {"commit": "a"}, {"commit": "b"}
    assert all(row.provenance == ours for row in table(FakeBench(), runs, tmp_path, provenance=ours))
    more = table(FakeBench(), runs, tmp_path, steps=(1, 4), provenance=theirs)
    assert [row.provenance for row in more if row.num_steps != 4] == [ours] * 5  # a yardstick, and two readouts twice
    assert [row.provenance for row in more if row.num_steps == 4] == [theirs] * 4
    for file in (tmp_path / "yardsticks.jsonl", tmp_path / "end" / "rows.jsonl"):
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        older = ({name: value for name, value in row.items() if name != "provenance"} for row in rows)
        file.write_text("".join(json.dumps(row) + "\n" for row in older))
    again = FakeBench()
    assert all(row.provenance is None for row in table(again, runs, tmp_path, provenance=theirs))
    assert not again.asked


def test_a_file_that_holds_no_rows_is_one_line(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text('{"objective": "flow"}\n')
    with pytest.raises(UserError, match="holds no rows of this fewstep version"):
        RowsFile(file).read()
    with pytest.raises(UserError, match="cannot write"):
        RowsFile(tmp_path / "nowhere" / "rows.jsonl").add([Compared("flow", None, 1, 0.0)], "a")


def test_rows_come_back_as_they_were_written(tmp_path: Path) -> None:
    row = Compared("flow", "parallel", 1, 0.0, None, 2.0, Interval(1.0, 3.0), (("NFE", "1"),), samples=((1.0, 2.0),))
    file = RowsFile(tmp_path / "rows.jsonl")
    file.add([row, replace(row, num_steps=2)], "a")
    file.add([replace(row, quality=5.0)], "a")
    assert file.read() == [replace(row, num_steps=2, stamp="a"), replace(row, quality=5.0, stamp="a")]


class Lengths:
    """Scores a text by its own number."""

    name = "lengths"

    def identity(self) -> dict[str, object]:
        return {}

    def score(self, texts: Sequence[str], ids: torch.Tensor, mask: torch.Tensor) -> ScoredText:
        nats = ids[:, 0].double()
        return ScoredText(nats, torch.ones_like(nats), torch.zeros_like(nats))


def test_kept_scores_are_told_apart_by_the_setting_that_they_were_scored_for() -> None:
    kept = KeptScores(Lengths())
    for first in (0, 2):  # two batches of two samples, each for two settings in turn
        for setting in (0, 10):
            ids = torch.tensor([[setting + first], [setting + first + 1]])
            kept.score(["", ""], ids, torch.ones_like(ids, dtype=torch.bool))
    assert [nats for nats, _ in kept.samples(0, 2)] == [0, 1, 2, 3]
    assert [nats for nats, _ in kept.samples(1, 2)] == [10, 11, 12, 13]
