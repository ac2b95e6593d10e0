"""Matched entropy: interpolation is exact on a known frontier, and what never gets there says so."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fewstep.evaluation.frontier import write_frontier
from fewstep.evaluation.matched import ENTROPY, at_entropy, matched_rows
from fewstep.evaluation.rows import FLOW, HELD_OUT, SHUFFLED, Row, Value
from fewstep.evaluation.sweep import Group, Samples, Sweep
from fewstep.evaluation.texts import Sampling, flow_settings
from fewstep.metrics.intervals import Interval
from tests.evaluation.test_texts import study

REAL_ENTROPY, SHUFFLED_PERPLEXITY = 3.0, 500.0


def row(name: str, entropy: float, perplexity: float, count: int = 20, spread: float = 0.0, **axes: object) -> Row:
    """``count`` samples of 10 tokens, half of them ``spread`` above and half below the entropy."""
    setting = {"name": name, **axes}
    entropies = [(entropy + spread,), (entropy - spread,)] * (count // 2)
    values = {"perplexity": Value(perplexity), ENTROPY: Value(entropy)}
    values |= {"repeated_4grams": Value(0.01 * entropy), "rms_ratio": Value(entropy / 3)}
    kept = {"perplexity": ((10 * math.log(perplexity), 10.0),) * count, ENTROPY: tuple(entropies)}
    return Row(setting, values, count, (0,), "1" * 12, "0" * 12, {}, 64, "cpu", per_sample=kept)


YARDSTICKS = [row(HELD_OUT, REAL_ENTROPY, 40.0), row(SHUFFLED, 3.1, SHUFFLED_PERPLEXITY)]


def frontier(*entropies: float, **options: object) -> list[Row]:
    """A setting at rising noise scales, on the frontier perplexity = exp(2 entropy)."""
    temperatures = [0.5 + 0.25 * place for place in range(len(entropies))]
    return [
        row(FLOW, entropy, math.exp(2 * entropy), readout="parallel", noise_scale=temperature, **options)
        for entropy, temperature in zip(entropies, temperatures, strict=True)
    ]


@pytest.mark.parametrize("entropies", [(2.5, 2.8, 3.2, 3.3), (3.0, 3.4), (2.2, 3.0), (3.3, 2.8)])
def test_on_a_frontier_that_is_straight_in_the_logarithm_it_is_exact_wherever_the_temperatures_are(
    entropies: tuple[float, ...],
) -> None:
    *_, matched = matched_rows([*YARDSTICKS, *frontier(*entropies)])
    assert matched.value("perplexity") == pytest.approx(math.exp(2 * REAL_ENTROPY))
    assert matched.value("shuffled_ratio") == pytest.approx(math.exp(2 * REAL_ENTROPY) / SHUFFLED_PERPLEXITY)
    assert (matched.value("repeated_4grams"), matched.value("rms_ratio")) == pytest.approx((0.03, 1.0))
    assert matched.value("repetition_ratio") == pytest.approx(1.0)
    interval = matched.interval("perplexity")
    assert (interval.low, interval.high) == pytest.approx((matched.value("perplexity"),) * 2)


def test_the_temperature_is_where_it_gets_there_and_of_several_places_the_lowest_perplexity_is_taken() -> None:
    *_, matched = matched_rows([*YARDSTICKS, *frontier(2.9, 3.3)])
    assert matched.setting == {"name": FLOW, "readout": "parallel", "temperature": "0.56"}
    points = torch.tensor([[2.5, 5.0], [3.5, 7.0], [3.0, 9.0], [2.0, 4.0], [3.2, 4.6]])
    assert at_entropy(points, 3.0).tolist() == pytest.approx([4.5])  # 6.0 and 9.0 on the way
    assert at_entropy(points.flip(0), 3.0).tolist() == pytest.approx([4.5])


@pytest.mark.parametrize("entropies", [(3.1, 3.4, 3.2), (2.0, 2.99), (2.8, 2.8)])
def test_a_sweep_on_one_side_never_gets_there_and_names_the_nearest_entropy(entropies: tuple[float, ...]) -> None:
    rows = [*YARDSTICKS, *frontier(*entropies)]
    *_, matched = matched_rows(rows)
    nearest = min(entropies, key=lambda entropy: abs(entropy - REAL_ENTROPY))
    assert "perplexity" in matched.values and matched.value("perplexity") is None
    assert matched.value("nearest_entropy_nats") == nearest
    assert matched.setting["temperature"] == f"never, {nearest:.2f}"


@pytest.mark.parametrize(
    ("entropies", "nearest"), [((2.7, 2.97, 2.9), 2.97), ((2.5, 2.94), None), ((3.09, 3.03), 3.03)]
)
def test_the_nearest_entropy_counts_within_the_interval_of_real_texts(
    entropies: tuple[float, ...], nearest: float | None
) -> None:
    real = replace(YARDSTICKS[0], values={**YARDSTICKS[0].values, ENTROPY: Value(3.0, Interval(2.95, 3.04))})
    rows = frontier(*entropies)
    *_, matched = matched_rows([real, YARDSTICKS[1], *rows])
    if nearest is None:
        assert matched.value("perplexity") is None and matched.setting["temperature"] == "never, 2.94"
        return
    taken = rows[entropies.index(nearest)]
    assert {name: matched.value(name) for name in taken.values} == {name: taken.value(name) for name in taken.values}
    assert matched.setting["temperature"] == f"{taken.setting['noise_scale']:.2f}"
    assert matched.value("shuffled_ratio") == pytest.approx(math.exp(2 * nearest) / SHUFFLED_PERPLEXITY)


def test_only_temperature_joins_rows_and_without_real_text_or_a_sweep_there_is_no_table() -> None:
    rows = [*frontier(2.9, 3.1), *frontier(2.5, 3.2, num_steps=4), row("unigram draws", 3.2, 600.0)]
    settings = [matched.setting for matched in matched_rows([*YARDSTICKS, *rows])]
    assert [(setting["name"], setting.get("num_steps")) for setting in settings] == [
        *((HELD_OUT, None), (SHUFFLED, None), (FLOW, None), (FLOW, 4))
    ]
    assert matched_rows(rows) == matched_rows([*YARDSTICKS, *rows[:1]]) == []


def test_the_interval_resamples_all_temperatures_alike_and_is_left_out_where_many_resamples_miss() -> None:
    # Sample i is above or below at both temperatures: were they resampled apart, the interval would be narrower.
    low, high = (row(FLOW, entropy, math.exp(2 * entropy), spread=0.2, noise_scale=entropy) for entropy in (2.5, 3.5))
    *_, matched = matched_rows([*YARDSTICKS, low, high])
    interval = matched.interval("perplexity")
    half = 1.96 * 0.2 / math.sqrt(20)
    assert math.log(interval.high / interval.low) / 4 == pytest.approx(half, rel=0.15)
    *_, matched = matched_rows([*YARDSTICKS, replace(low, per_sample={}), high])
    assert matched.value("perplexity") is not None and matched.interval("perplexity") is None
    near = row(FLOW, 3.01, math.exp(6.02), spread=0.2, noise_scale=0.9)
    *_, matched = matched_rows([*YARDSTICKS, near, high])
    assert matched.value("perplexity") is None
    near = row(FLOW, 2.99, math.exp(5.98), spread=0.2, noise_scale=0.9)
    *_, matched = matched_rows([*YARDSTICKS, near, high])
    assert matched.value("perplexity") is not None and matched.interval("perplexity") is None


@pytest.mark.parametrize("length", [None, 3])
def test_real_text_as_samples_is_itself_and_cut_short_it_does_not_pass(length: int | None) -> None:
    real = (own := study()).real.held_out
    seen = real.mask & (torch.arange(real.ids.shape[1]) < (length or math.inf))

    def make(batch: object, settings: object) -> list[Samples]:
        rows = torch.arange(batch.count) + batch.seed_index * own.num_samples + batch.first
        return [Samples({"ids": real.ids[rows], "mask": seen[rows]}) for _ in settings]

    group = Group(tuple({"name": "copy", "temperature": value} for value in (0.8, 1.2)), make)
    rows = list(Sweep(own.plan([*own.yardsticks()[:2], group], ("scores", "repetition"))).rows())
    first, _, copy = matched_rows(rows)
    if length is not None:
        assert rows[-1].value("tokens_per_sample") == length
        assert copy.value("perplexity") is None and copy.value("nearest_entropy_nats") <= math.log(length)
        return
    for name in ("perplexity", "shuffled_ratio"):
        assert copy.value(name) == pytest.approx(first.value(name))
    assert copy.value("repetition_ratio") in (None, 1.0)


def test_a_sweep_scales_the_noise_of_what_reads_the_likeliest_token_and_heats_the_tokens_of_what_draws() -> None:
    groups = flow_settings(Sampling(4, "1"), ("parallel", "head"), (0.6, 1.0, 1.2))
    found = [
        [(setting["readout"], setting["noise_scale"], setting.get("temperature")) for setting in settings]
        for _, settings in groups
    ]
    assert found == [
        [("parallel", 1.0, None), ("head", 1.0, None), ("head", 1.0, 0.6), ("head", 1.0, 1.2)],
        [("parallel", 0.6, None)],
        [("parallel", 1.2, None)],
    ]
    assert [sampling.noise_scale for sampling, _ in groups] == [1.0, 0.6, 1.2]
    assert len(flow_settings(Sampling(4), ("head",), (0.6, 1.0))) == 1
    ((_, heated),) = flow_settings(Sampling(4), ("parallel",), (0.6, 1.0), heats_tokens=True)
    assert [setting.get("temperature") for setting in heated] == [0.0, 0.6, 1.0]


def test_tokens_are_heated_from_the_likeliest_on_wherever_the_readout_takes_these() -> None:
    for readout, coldest, expected in (("parallel", {"temperature": 0.0}, "0.25"), ("head", {}, "0.75")):
        points = [(coldest, 2.8, 80.0), ({"temperature": 0.5}, 2.9, 100.0), ({"temperature": 1.0}, 3.1, 400.0)]
        rows = [row(FLOW, *values, readout=readout, **axis) for axis, *values in points]
        *_, matched = matched_rows([row(HELD_OUT, 2.85, 40.0), *rows])
        assert matched.setting["temperature"] == expected


def test_the_picture_looks_near_real_text_and_there_is_none_without_a_sweep(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked = []
    monkeypatch.setattr("fewstep.evaluation.frontier.write_png", lambda figure, file: looked.append(figure.axes))
    swept_rows = [*YARDSTICKS, *frontier(2.9, 3.1, num_steps=4, reinjection="0")]
    collapsed = row(FLOW, 0.1, 2e6, readout="parallel", noise_scale=3.0, num_steps=4, reinjection="0")
    for rows in (swept_rows, [*swept_rows, collapsed], YARDSTICKS):
        write_frontier(rows, "a scorer", tmp_path / "frontier.png")
    (alone,), (beside,) = looked
    assert alone.get_xlim() == beside.get_xlim() == pytest.approx((2.6, 3.2))
    assert alone.get_ylim() == beside.get_ylim() == pytest.approx((32.0, 625.0))
    assert REAL_ENTROPY in [line.get_xdata()[0] for line in alone.lines if line.get_linestyle() == ":"]
