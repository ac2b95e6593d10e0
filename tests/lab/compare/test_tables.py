"""Comparisons: gains by pairs, the table, and pictures of text and images by the same code."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fewstep.diagnostics.result import Picture
from fewstep.errors import UserError
from fewstep.evaluation.columns import markdown_table
from fewstep.evaluation.rows import Row, RowFile, Value, hash_of, table_lines
from fewstep.lab.compare.tables import COLUMNS, gain_over, with_gains, write_contrast
from fewstep.metrics.intervals import Interval


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
    table = markdown_table(table_lines(rows, COLUMNS), "A caption.")
    assert "beats the flow by" in table and "| 1.65 | 1.65 - 1.65 | 2,100 |" in table


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Picture]:
    """What is drawn in place of files."""
    pictures: list[Picture] = []
    monkeypatch.setattr("fewstep.lab.compare.tables.write_pictures", lambda panels, file: pictures.extend(panels))
    return pictures


def write_rows(folder: Path, rows: list[Row]) -> Path:
    folder.mkdir()
    for each in rows:
        RowFile(folder / "rows.jsonl").append(each)
    return folder / "rows.jsonl"


def test_a_panel_a_comparison_and_readout_has_a_line_an_objective_and_rule_over_real_data(
    drawn: list[Picture], tmp_path: Path
) -> None:
    texts = comparison(("parallel", "head"))
    hotter = text("mean_flow", 2, "0", [9.0])
    hotter = replace(hotter, setting={**hotter.setting, "noise_scale": 1.2})
    images = [row("train images", {"latents": Value(0.5)}), image("flow_matching", (2.0,))]
    files = [write_rows(tmp_path / "text", [*texts, hotter]), write_rows(tmp_path / "images", images)]
    write_contrast(files, tmp_path / "contrast.png")
    labels = [f"{name}, gamma {rule}" for rule in ("0", "1") for name in ("flow_matching", "mean_flow")]
    assert [picture.title for picture in drawn] == ["text, parallel readout", "text, head readout", "images"]
    for picture in drawn:
        assert [series.label for series in picture.series] == [*labels, "real data"]  # one legend for all
        assert set(picture.series[-1].y) == {1.0}
    first = drawn[0].series[0]
    assert first.x == (1, 2, 4)
    assert first.y == pytest.approx([each.value("perplexity") / 3.0 for each in texts[1:7:2]])
    assert first.high == pytest.approx([1.1 * y for y in first.y])
    ours, *others = drawn[2].series[:-1]
    assert ours.y == (2.0 / 0.5,)
    assert all(math.isnan(y) for series in others for y in series.y)


def test_no_picture_without_scored_rows_of_real_data(tmp_path: Path) -> None:
    for name, rows, message in (
        ("none", [], "no finished comparison"),
        ("unreal", comparison()[1:], "the real data have no quality"),
    ):
        with pytest.raises(UserError, match=message):
            write_contrast([write_rows(tmp_path / name, rows)], tmp_path / "b.png")
