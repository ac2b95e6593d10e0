"""Promises of the speed benchmark: a baseline of equal size, rates that are tokens over seconds, and ways by turns."""

import json
from pathlib import Path

import pytest

from benchmarks import generation_speed as speed
from fewstep.errors import UserError
from fewstep.readouts import CausalTransformer
from tests.bundles import BLOCK_SIZE, tiny_bundle


@pytest.mark.parametrize(("vocab_size", "width", "depth"), [(290, 16, 1), (2048, 210, 5), (5000, 64, 12)])
def test_the_baseline_has_the_parameters_it_is_to_match_within_5_percent(
    vocab_size: int, width: int, depth: int
) -> None:
    real = speed.parameter_count(CausalTransformer(vocab_size, width=width, depth=depth, num_heads=1))
    assert speed.causal_count(vocab_size, width, depth) == real
    for target in (real, int(1.3 * real), int(0.7 * real)):
        baseline = speed.matched_baseline(target, vocab_size, depth)
        assert abs(speed.parameter_count(baseline) / target - 1) <= 0.05
        assert baseline.latents is None and baseline.vocab_size == vocab_size


def test_a_size_that_no_transformer_has_is_told_in_a_line() -> None:
    with pytest.raises(UserError, match="no causal transformer of 100 parameters within 5 %"):
        speed.matched_baseline(100, 2048, 2)


def test_rates_times_seconds_are_the_tokens_made_and_the_baseline_is_that_of_the_flow() -> None:
    bundle = tiny_bundle()
    ways, baseline = speed.all_ways(bundle, steps=(1, 3))
    rows = speed.measure(ways, batches=(1, 4), repeats=2)
    assert [(row.num_steps, row.passes) for row in rows[:5]] == [(1, 2), (3, 4), (4, 12), (None, 8), (None, 8)]
    assert abs(speed.parameter_count(baseline) / rows[0].parameters - 1) <= 0.05
    assert rows[0].parameters == speed.parameter_count(bundle.denoiser, bundle.readout)
    for row in rows:
        assert row.tokens == row.batch_size * BLOCK_SIZE and len(row.seconds) == 2
        for rate, seconds in zip(row.tokens_per_second, row.seconds, strict=True):
            assert rate * seconds == pytest.approx(row.tokens, rel=1e-12)
        assert row.rate.low <= row.rate.median <= row.rate.high
    assert rows[4].times_baseline == rows[9].times_baseline == speed.Spread(1.0, 1.0, 1.0)


def test_ways_take_turns_and_each_repeat_is_compared_with_the_baseline_of_its_own() -> None:
    calls: list[str] = []

    def way(name: str, times: list[float]) -> speed.Way:
        def make(batch_size: int, seed: int) -> tuple[int, float]:
            calls.append(name)
            return 8 * batch_size, times[seed]

        return speed.Way(name, None, 1, 1, make)

    first, _ = speed.measure([way("a", [9, 1, 2, 5]), way("b", [9, 4, 8, 20])], batches=(2,), repeats=3)
    assert "".join(calls) == "ab" + "ab" + "ba" + "ab"
    assert first.tokens_per_second == (16, 8, 3.2) and first.seconds == (1, 2, 5)
    assert first.times_baseline == speed.Spread(4.0, 4.0, 4.0), "paired: the machine's slowness cancels"


def test_the_command_writes_what_it_prints(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(speed, "PARALLEL_STEPS", (1,))
    monkeypatch.setattr(speed, "BATCHES", (1,))
    tiny_bundle().save_pretrained(tmp_path / "model")
    out = tmp_path / "speed.json"
    assert speed.command(["--model", str(tmp_path / "model"), "--repeats", "1", "--out", str(out)]) == 0
    written, printed = json.loads(out.read_text()), capsys.readouterr().out
    assert "torch.set_num_threads(1)" in printed and "load average" in printed
    for count in ("denoiser_and_readout_parameters", "baseline_parameters"):
        assert f"{written[count]:,}" in printed
    assert [row["name"] for row in written["rows"]][-1] == speed.BASELINE
    with pytest.raises(UserError, match="exists already"):
        speed.command(["--model", str(tmp_path / "model"), "--repeats", "1", "--out", str(out)])
