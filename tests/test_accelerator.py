"""The command for an accelerator: how it divides its minutes, and that a second run goes on from finished parts."""

import importlib
import json
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from fewstep.denoisers import RegressionDenoiser
from fewstep.readouts import CausalTransformer, TransformerReadout
from tests.runs import ROOT, write_text


@pytest.fixture
def accelerator(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The study as a module, on the CPU, whatever the machine has."""
    monkeypatch.syspath_prepend(ROOT / "studies")
    module = importlib.import_module("accelerator")
    monkeypatch.setattr(module, "pick_device", lambda: "cpu")
    return module


class FakeClock:
    """Stands for the clock: time passes where a part says so."""

    now = 0.0

    def __call__(self) -> float:
        return self.now

    def part(self, given: dict[str, float], name: str, factor: float) -> Callable[[float], dict[str, Any]]:
        """A part that takes ``factor`` of its share, which it notes in ``given``."""

        def work(seconds: float) -> dict[str, Any]:
            given[name] = seconds
            self.now += factor * seconds
            return {"note": name}

        return work


def test_parts_share_the_minutes_and_what_is_done_is_not_done_again(
    accelerator: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    clock, given = FakeClock(), {}
    monkeypatch.setattr(time, "perf_counter", clock)
    study = accelerator.Study(tmp_path, "debug", "a.txt", "")
    names = ("autoencoder", "flow", "scores", "tests")
    factors = {"autoencoder": 0.5, "flow": 2.0}
    parts = {name: clock.part(given, name, factors.get(name, 1.0)) for name in names}
    study.do({name: parts[name] for name in names[:1]}, 0.0)
    assert given == {"autoencoder": 0.0}, "no seconds, and still done"
    monkeypatch.setattr(accelerator, "SHARES", {"autoencoder": 5.0, "flow": 2.0, "scores": 1.0, "tests": 5.0})
    again = accelerator.Study(tmp_path, "debug", "a.txt", "")
    again.do(parts, 80.0)
    # 2 of 8 shares are 20 s, of which the flow takes 40; the others divide the 40 that are left.
    assert given == {"autoencoder": 0.0, "flow": 20.0, "scores": pytest.approx(40 / 6), "tests": pytest.approx(200 / 6)}
    assert clock.now == pytest.approx(80.0), "parts that keep to their shares end with the minutes"
    assert json.loads((tmp_path / "accelerator.json").read_text())["parts"]["flow"]["seconds"] == 40.0
    with pytest.raises(accelerator.UserError, match=r"choose another --out"):
        accelerator.Study(tmp_path, "debug", "b.txt", "")


def test_a_plan_fills_the_time_and_compiles_where_that_makes_more_steps(accelerator: ModuleType) -> None:
    eager = {"step_seconds": 0.02, "overhead_seconds": 5.0}
    compiled = {"step_seconds": 0.01, "overhead_seconds": 65.0}
    for left in (30.0, 124.0, 126.0, 900.0):
        plan = accelerator.best_plan({"eager": eager, "compiled": compiled}, left)
        trial = compiled if plan["compiled"] else eager
        assert plan["compiled"] == (left > 125), "where the two make equally many steps"
        assert left - 0.02 < trial["overhead_seconds"] + plan["steps"] * trial["step_seconds"] <= left + 1e-9
        assert plan["limit_seconds"] >= left - 1
    assert accelerator.best_plan({"eager": eager}, -3.0)["steps"] == accelerator.TRIAL_STEPS


def test_a_clock_repeats_as_often_as_its_seconds_allow(accelerator: ModuleType) -> None:
    calls: list[str] = []
    works = {name: lambda name=name: calls.append(name) for name in "ab"}
    assert {name: len(taken) for name, taken in accelerator.Clock("cpu").by_turns(works, 3).items()} == {"a": 3, "b": 3}
    assert calls == [*"ab", *"ab", *"ba", *"ab"]
    assert [len(taken) for taken in accelerator.Clock("cpu").by_turns(works, 3, within=0.0).values()] == [1, 1]


@pytest.mark.parametrize("stride", [1, 4])
def test_the_operations_counted_of_a_step_are_those_of_its_products(accelerator: ModuleType, stride: int) -> None:
    batch, positions, width, latent_dim = 4, 32, 64, 8
    denoiser = RegressionDenoiser(latent_dim, positions, width=width, depth=2, num_heads=2)
    readout = TransformerReadout(300, latent_dim, stride=stride, width=width, depth=1, num_heads=2)
    causal = CausalTransformer(300, latent_dim=latent_dim, stride=stride, width=width, depth=1, num_heads=2)
    networks = accelerator.Networks(denoiser, readout, causal, "cpu")
    works = networks.works(batch, (1, 3), ()).values()
    _, one_step, three = (accelerator.count_flops(work) for work in works)
    # Of a position: ends, and in each block attention's maps, the feed-forward's, and scores and sums; of an example:
    # the modulation of each block, and the embedding of time with its 128 sines and cosines.
    position = 2 * latent_dim * width + 2 * ((4 + 8) * width**2 + 2 * positions * width)
    example = 2 * 6 * width**2 + 128 * width + width**2
    assert (three - one_step) / 2 == 2 * batch * (positions * position + example)
    assert networks.length == stride * positions, "GPT-2 writes as many tokens"
    assert abs(networks.gpt2.num_parameters() / networks.num_parameters - 1) < 0.2


@pytest.mark.slow
def test_the_command_trains_times_and_writes_its_page_and_a_second_run_changes_no_number(
    accelerator: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    text = write_text(tmp_path / "text.jsonl")
    command = ["--minutes", "0.5", "--size", "debug", "--source", str(text), "--out", str(tmp_path / "out")]
    assert accelerator.main(command) == 0
    results = json.loads((tmp_path / "out" / "accelerator.json").read_text())
    assert set(results["parts"]) == set(accelerator.SHARES)
    for stage in accelerator.STAGES:
        assert results["parts"][stage]["steps"] >= accelerator.TRIAL_STEPS
    speeds = results["parts"]["speed_128_16"]["rows"]
    assert len(speeds) == 7 and all(row["tokens_per_second"] > 0 for row in speeds.values())
    for row in speeds.values():
        assert 0 < row.get("utilisation", 0.5) < 1
    page = (tmp_path / "out" / "accelerator.md").read_text()
    assert results["settings"]["card"] in page and results["date"] in page and "few-step model" in page
    assert (tmp_path / "out" / "speed.png").is_file()
    monkeypatch.setattr(accelerator, "fewstep", lambda words: pytest.fail(f"ran {words} again"))
    assert accelerator.main(command) == 0
    assert json.loads((tmp_path / "out" / "accelerator.json").read_text())["parts"] == results["parts"]
