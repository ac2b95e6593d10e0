"""Comparisons: gains by pairs, what the table tells, and pictures under one code path for text and images."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.image import imread

from fewstep.errors import UserError
from fewstep.evaluation.scoring import corpus_perplexity
from fewstep.lab.compare.comparison import Compared, Quality
from fewstep.lab.compare.contrast import (
    Comparison,
    comparison_markdown,
    comparison_text,
    gain_over,
    read_comparison,
    table_lines,
    with_gains,
    write_comparison_figure,
    write_contrast_figure,
)
from fewstep.metrics.intervals import Interval

PERPLEXITY = Quality("perplexity", corpus_perplexity)
DISTANCE = Quality("Frechet distance", lambda samples: samples.mean((-2, -1)), of_seeds=True)
WHY = "its objective tells the end of a trajectory"


def scored(nats: list[float], tokens: float = 4.0) -> tuple[tuple[float, ...], ...]:
    return tuple((value, tokens) for value in nats)


def row(objective: str, num_steps: int, gamma: float, nats: list[float], readout: str | None = "parallel") -> Compared:
    quality = math.exp(sum(nats) / (4 * len(nats)))
    return Compared(
        objective,
        readout,
        num_steps,
        gamma,
        quality=quality,
        quality_interval=Interval(0.9 * quality, 1.1 * quality),
        others=(("NFE", str(num_steps)), ("N", "3")),
        stiffness_peak=3.21,
        passes=2100.0,
        seconds=12.0,
        samples=scored(nats),
    )


def comparison(kind: str = "text", readouts: tuple[str | None, ...] = ("parallel",)) -> Comparison:
    rows = [Compared("held-out text", None, None, None, quality=3.0, others=(("N", "3"),), samples=scored([4.0]))]
    for readout in readouts:
        for gamma in (0.0, 1.0):
            for k in (1, 2, 4):
                rows.append(row("flow_matching", k, gamma, [24.0 - k, 21.0 - k, 25.0 - k], readout))
                rows.append(row("mean_flow", k, gamma, [22.0 - k, 19.0 - k, 23.0 - k], readout))
        rows.append(Compared("consistency", readout, 2, 0.0, ruled_out=WHY))
    return Comparison(kind, "perplexity", 3.0, "A caption.", with_gains(rows, PERPLEXITY))


def test_a_gain_is_the_flows_quality_over_the_rows_own_and_its_interval_knows_that_the_noise_is_shared() -> None:
    nats = (8 + 3 * torch.randn(40, generator=torch.Generator().manual_seed(0))).tolist()
    flow, better = row("flow_matching", 1, 0.0, nats), row("mean_flow", 1, 0.0, [value - 0.4 for value in nats])
    gain, interval = gain_over(better, flow, PERPLEXITY)
    assert gain == pytest.approx(math.exp(0.1))
    assert interval is not None
    assert (interval.low, interval.high) == pytest.approx((gain, gain))  # each pair differs by the same
    unpaired = replace(better, samples=tuple(reversed(better.samples)))
    same, wide = gain_over(unpaired, flow, PERPLEXITY)
    assert same == pytest.approx(gain)
    assert wide is not None and wide.low < 0.9 * gain and wide.high > 1.1 * gain
    with pytest.raises(ValueError, match="40 samples against 3 of the flow"):
        gain_over(better, row("flow_matching", 1, 0.0, [1.0, 2.0, 3.0]), PERPLEXITY)


def test_of_seeds_the_interval_is_students_on_the_logarithms_and_one_seed_has_none() -> None:
    flow = replace(row("flow_matching", 1, 0.0, [1.0]), samples=((2.0,), (4.0,), (6.0,)))
    halved = replace(flow, objective="mean_flow", samples=((1.0,), (2.0,), (3.0,)))
    gain, interval = gain_over(halved, flow, DISTANCE)
    assert gain == pytest.approx(2.0)
    assert interval is not None and (interval.low, interval.high) == pytest.approx((2.0, 2.0))
    one, none = gain_over(replace(halved, samples=((1.0,),)), replace(flow, samples=((3.0,),)), DISTANCE)
    assert (one, none) == (pytest.approx(3.0), None)


def test_a_row_is_set_against_the_flow_of_its_own_setting_alone() -> None:
    rows = [
        row("flow_matching", 1, 0.0, [8.0, 9.0]),
        row("flow_matching", 2, 0.0, [4.0, 5.0]),
        row("mean_flow", 2, 0.0, [4.0, 5.0]),
    ]
    rows.append(row("mean_flow", 4, 0.0, [4.0, 5.0]))
    found = with_gains([*rows, Compared("consistency", "parallel", 2, 0.0, ruled_out=WHY)], PERPLEXITY)
    assert [one.gain for one in found] == [None, None, pytest.approx(1.0), None, None]


def test_the_table_shows_what_is_ruled_out_and_why_and_comes_back_from_its_file(tmp_path: Path) -> None:
    made = comparison()
    heading, *lines = table_lines(made)
    assert {len(line) for line in lines} == {len(heading)}
    ruled_out = dict(zip(heading, lines[-1], strict=True))
    assert (ruled_out["objective"], ruled_out["perplexity"], ruled_out["K"]) == ("consistency", "ruled out", "2")
    assert not ruled_out["beats the flow by"]
    better = dict(zip(heading, lines[2], strict=True))
    assert better["beats the flow by"].startswith("1.65 (1.65 - 1.65")
    assert (better["passes"], better["training s"], better["stiffness peak"]) == ("2,100", "12", "3.21")
    for text in (comparison_text(made), comparison_markdown(made)):
        assert "A caption." in text
        assert f"consistency, K = 2 with gamma 0, is ruled out: {WHY}." in text
    file = tmp_path / "compare.json"
    file.write_text(json.dumps(made.to_dict()))
    assert table_lines(read_comparison(file)) == table_lines(made)
    file.write_text("{}")
    with pytest.raises(UserError, match="holds no finished comparison"):
        read_comparison(file)


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, list[int], list[float], str]]:
    """Label, points and dashes of every line, and the levels of real data, in the order of drawing."""
    lines: list[tuple[str, list[int], list[float], str]] = []
    errorbar, axhline = Axes.errorbar, Axes.axhline

    def watched(axes: Axes, x: list[int], y: list[float], **style: object) -> object:
        lines.append((str(style["label"]), list(x), list(y), str(style["linestyle"])))
        return errorbar(axes, x, y, **style)

    def level(axes: Axes, y: float, **style: object) -> object:
        lines.append(("real", [], [y], str(style["linestyle"])))
        return axhline(axes, y, **style)

    monkeypatch.setattr(Axes, "errorbar", watched)
    monkeypatch.setattr(Axes, "axhline", level)
    return lines


def test_an_objective_is_a_line_solid_without_re_injection_and_dashed_with(
    drawn: list[tuple[str, list[int], list[float], str]], tmp_path: Path
) -> None:
    made = comparison(readouts=("parallel", "head"))
    write_comparison_figure(made, tmp_path / "new" / "a.png")
    assert min(imread(tmp_path / "new" / "a.png").shape[:2]) > 300
    lines = [line for line in drawn if line[0] != "real"]
    assert [(line[0], line[3]) for line in lines[:4]] == [
        ("flow_matching, gamma 0", "-"),
        ("mean_flow, gamma 0", "-"),
        ("flow_matching, gamma 1", "--"),
        ("mean_flow, gamma 1", "--"),
    ]
    assert len(lines) == 8  # a panel a readout; what is ruled out has no line
    assert all(line[1] == [1, 2, 4] for line in lines)
    assert [line[2] for line in drawn if line[0] == "real"] == [[3.0], [3.0]]


def test_the_contrast_is_relative_to_each_ones_real_data(
    drawn: list[tuple[str, list[int], list[float], str]], tmp_path: Path
) -> None:
    text, images = comparison(), replace(comparison("images", (None,)), real=0.5)
    write_contrast_figure([text, images], tmp_path / "contrast.png")
    assert [line[2] for line in drawn if line[0] == "real"] == [[1.0], [1.0]]
    ours, theirs = (line for line in drawn if line[0] == "flow_matching, gamma 0")
    quality = text.rows[1].quality or 0.0
    assert ours[2][0] == pytest.approx(quality / 3.0)
    assert theirs[2][0] == pytest.approx(quality / 0.5)


def test_nothing_measured_and_a_place_that_cannot_be_written_are_no_traceback(tmp_path: Path) -> None:
    bare = replace(comparison(), rows=comparison().rows[:1])
    write_comparison_figure(bare, tmp_path / "bare.png")
    write_contrast_figure([bare, bare], tmp_path / "bare_too.png")
    (tmp_path / "mine").write_text("mine")
    with pytest.raises(UserError, match="cannot write the figure"):
        write_comparison_figure(comparison(), tmp_path / "mine" / "a.png")
