"""Comparisons: gains by pairs, the table, and pictures of text and images by the same code."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from matplotlib.axes import Axes

from fewstep.errors import UserError
from fewstep.evaluation.rows import Row, RowFile, Value, hash_of, rows_markdown
from fewstep.lab.compare.tables import COLUMNS, gain_over, with_gains, write_contrast, write_figure
from fewstep.metrics.intervals import Interval

Lines = list[tuple[str, list[float], list[float], str]]


def row(name: str, values: dict[str, Value], per_sample: dict | None = None, **setting: str | int) -> Row:
    return Row({"name": name, **setting}, values, 3, (0,), "m", hash_of({}), {}, 4, "cpu", per_sample=per_sample or {})


def text(name: str, num_steps: int, rule: str, nats: list[float], readout: str = "parallel") -> Row:
    """A row of ``nats``, one a sample of 4 tokens."""
    quality = math.exp(sum(nats) / (4 * len(nats)))
    values = {"perplexity": Value(quality, Interval(0.9 * quality, 1.1 * quality)), "passes": Value(2100.0)}
    kept = {"perplexity": tuple((value, 4.0) for value in nats)}
    return row(name, values, kept, num_steps=num_steps, reinjection=rule, readout=readout)


def image(name: str, by_seed: tuple[float, ...]) -> Row:
    values = {"latents": Value(sum(by_seed) / len(by_seed), None, by_seed)}
    return row(name, values, num_steps=1, reinjection="0")


def comparison(readouts: tuple[str, ...] = ("parallel",)) -> list[Row]:
    rows = [row("held-out text", {"perplexity": Value(3.0)})]
    for readout in readouts:
        for rule in ("0", "1"):
            for k in (1, 2, 4):
                rows.append(text("flow_matching", k, rule, [24.0 - k, 21.0 - k, 25.0 - k], readout))
                rows.append(text("mean_flow", k, rule, [22.0 - k, 19.0 - k, 23.0 - k], readout))
    return rows


def test_a_gain_is_the_flows_quality_over_the_rows_own_and_its_interval_knows_that_the_noise_is_shared() -> None:
    nats = (8 + 3 * torch.randn(40, generator=torch.Generator().manual_seed(0))).tolist()
    flow, better = text("flow_matching", 1, "0", nats), text("mean_flow", 1, "0", [value - 0.4 for value in nats])
    gain = gain_over(better, flow, "perplexity")
    assert gain.value == pytest.approx(math.exp(0.1))
    assert (gain.interval.low, gain.interval.high) == pytest.approx((gain.value, gain.value))  # each pair the same
    unpaired = replace(better, per_sample={"perplexity": tuple(reversed(better.per_sample["perplexity"]))})
    same = gain_over(unpaired, flow, "perplexity")
    assert same.value == pytest.approx(gain.value)
    assert same.interval.low < 0.9 * gain.value and same.interval.high > 1.1 * gain.value
    with pytest.raises(ValueError, match="40 samples against 3 of the flow"):
        gain_over(better, text("flow_matching", 1, "0", [1.0, 2.0, 3.0]), "perplexity")


def test_of_seeds_the_interval_is_students_on_the_logarithms_and_one_seed_has_none() -> None:
    flow, halved = image("flow_matching", (2.0, 4.0, 6.0)), image("mean_flow", (1.0, 2.0, 3.0))
    gain = gain_over(halved, flow, "latents")
    assert gain.value == pytest.approx(2.0)
    assert (gain.interval.low, gain.interval.high) == pytest.approx((2.0, 2.0))
    assert gain_over(image("mean_flow", (1.0,)), image("flow_matching", (3.0,)), "latents") == Value(3.0, None)


def test_a_row_is_set_against_the_flow_of_its_own_setting_alone_and_the_table_shows_it() -> None:
    rows = with_gains([*comparison(), text("mean_flow", 8, "0", [4.0, 5.0])])
    gains = {(row.setting["name"], row.setting.get("num_steps")): row.value("gain") for row in rows}
    assert gains["mean_flow", 2] == pytest.approx(math.exp(0.5))
    assert gains["mean_flow", 8] is gains["flow_matching", 2] is gains["held-out text", None] is None
    table = rows_markdown(rows, "A caption.", COLUMNS)
    assert "beats the flow by" in table and "| 1.65 | 1.65 - 1.65 | 2,100 |" in table


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> Lines:
    """Label, points and dashes of every line, and the levels of real data, in the order of drawing."""
    lines: Lines = []
    errorbar, axhline = Axes.errorbar, Axes.axhline

    def watched(axes: Axes, x: list[float], y: list[float], **style: object) -> object:
        lines.append((str(style["label"]), list(x), list(y), str(style["linestyle"])))
        return errorbar(axes, x, y, **style)

    def level(axes: Axes, y: float, **style: object) -> object:
        lines.append(("real", [], [y], str(style["linestyle"])))
        return axhline(axes, y, **style)

    monkeypatch.setattr(Axes, "errorbar", watched)
    monkeypatch.setattr(Axes, "axhline", level)
    return lines


def test_an_objective_is_a_line_solid_without_re_injection_and_dashed_with(drawn: Lines, tmp_path: Path) -> None:
    write_figure(comparison(("parallel", "head")), tmp_path / "new" / "a.png")
    lines = [line for line in drawn if line[0] != "real"]
    assert {(line[0], line[3]) for line in lines[:4]} == {
        (f"{name}, gamma {rule}", dash)
        for name in ("flow_matching", "mean_flow")
        for rule, dash in (("0", "-"), ("1", "--"))
    }
    assert len(lines) == 8  # a panel a readout
    assert all(line[1] == [1, 2, 4] for line in lines)
    assert [line[2] for line in drawn if line[0] == "real"] == [[3.0], [3.0]]
    (tmp_path / "mine").write_text("mine")
    with pytest.raises(UserError, match="cannot write the figure"):
        write_figure(comparison(), tmp_path / "mine" / "a.png")


def test_the_contrast_is_relative_to_each_ones_real_data(drawn: Lines, tmp_path: Path) -> None:
    texts, images = comparison(), [row("train images", {"latents": Value(0.5)}), image("flow_matching", (2.0,))]
    for name, rows in (("text", texts), ("images", images)):
        (tmp_path / name).mkdir()
        for each in rows:
            RowFile(tmp_path / name / "rows.jsonl").append(each)
    write_contrast([tmp_path / "text", tmp_path / "images"], "rows.jsonl", tmp_path / "contrast.png")
    assert [line[2] for line in drawn if line[0] == "real"] == [[1.0], [1.0]]
    ours, theirs = (line for line in drawn if line[0] == "flow_matching, gamma 0")
    assert ours[2][0] == pytest.approx(texts[1].value("perplexity") / 3.0)
    assert theirs[2][0] == pytest.approx(2.0 / 0.5)
    with pytest.raises(UserError, match="no finished comparison"):
        write_contrast([tmp_path], "rows.jsonl", tmp_path / "b.png")
