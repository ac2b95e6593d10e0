"""Pictures of a sweep: one line a setting, points at their costs, whatever is missing left out."""

from dataclasses import replace
from pathlib import Path

import pytest
from matplotlib.axes import Axes
from matplotlib.image import imread

from fewstep.errors import UserError
from fewstep.evaluation.pareto import NFE, SECONDS, line_of, write_pareto_figure
from fewstep.evaluation.sweep_row import FLOW, Setting, SweepRow
from fewstep.metrics.intervals import Interval


def fake_row(setting: Setting, perplexity: float | None, entropy: float, nfe: int | None, speed: float | None):
    interval = None if perplexity is None else Interval(0.9 * perplexity, 1.1 * perplexity)
    return SweepRow(
        setting=setting,
        num_samples=256,
        seeds=(0,),
        perplexity=perplexity,
        perplexity_interval=interval,
        perplexity_by_seed=(perplexity,),
        entropy_nats=entropy,
        entropy_interval=Interval(entropy - 0.02, entropy + 0.02),
        scored_tokens=8192,
        distinct_1=0.2,
        distinct_2=0.8,
        distinct_4=1.0,
        repeated_4grams=0.0,
        longest_copy_tokens=9,
        mean_copy_tokens=4.0,
        memorised_8grams=0.1,
        mauve=None,
        late_flip_rate=None,
        cci=None,
        cci_interval=None,
        nfe=nfe,
        seconds=None if speed is None else 8192 / speed,
        tokens_per_second=speed,
        batch_size=64,
        device="cpu",
        protocol_hash="0" * 12,
        protocol={"scorer": {"class": "RunScorer"}},
        model="1" * 12,
    )


def fake_rows() -> list[SweepRow]:
    """Numbers of a plausible size; two readouts, three rules, two temperatures."""
    rows = [
        fake_row(Setting("held-out text"), 41.0, 3.2, None, None),
        fake_row(Setting("language model"), 47.0, 3.1, 32, 4000.0),
    ]
    for readout, level, passes in (("parallel", 3000.0, 1), ("head", 200.0, 32)):
        for gamma, gain in (("0", 1.0), ("0.5", 0.8), ("linear:1,0.2", 0.7)):
            for heat in (1.0, 0.9):
                for k in (1, 4, 16):
                    setting = Setting(FLOW, readout, k, gamma, heat)
                    value = level * gain * heat / k**0.3
                    rows.append(fake_row(setting, value, 3.1 - 0.5 / k, k + passes, 20000 / (k + passes)))
    return rows


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> dict[str, tuple[list[float], list[float]]]:
    """The points of each line of perplexity, by its label, once a figure is written."""
    lines: dict[str, tuple[list[float], list[float]]] = {}
    errorbar = Axes.errorbar

    def watched(axes: Axes, x: list[float], y: list[float], **style: object) -> object:
        lines[str(style["label"])] = (list(x), list(y))
        return errorbar(axes, x, y, **style)

    monkeypatch.setattr(Axes, "errorbar", watched)
    return lines


@pytest.mark.parametrize("cost", [NFE, SECONDS])
def test_each_setting_has_a_line_with_a_point_for_each_number_of_steps(
    cost: object, drawn: dict[str, tuple[list[float], list[float]]], tmp_path: Path
) -> None:
    rows = fake_rows()
    write_pareto_figure(list(reversed(rows)), cost, tmp_path / "new" / "a.png", scorer="a scorer")
    assert min(imread(tmp_path / "new" / "a.png").shape[:2]) > 300
    assert len(drawn) == 12
    assert drawn.keys() == {line_of(row) for row in rows[2:]}
    x, y = drawn["parallel, gamma 0.5, noise x 0.9"]
    mine = [row for row in rows[2:] if line_of(row) == "parallel, gamma 0.5, noise x 0.9"]
    assert x == [cost.of(row) for row in mine]
    assert x == sorted(x)
    assert y == [row.perplexity for row in mine]
    assert NFE.of(mine[0]) == 2
    assert SECONDS.of(mine[0]) == pytest.approx(0.1)


def test_a_line_names_its_controls_where_they_are_unusual() -> None:
    setting = Setting(FLOW, "parallel", 4, "1", 1.0, 1.0, "fresh", "none")
    assert line_of(fake_row(setting, 9.0, 3.0, 5, 1.0)) == "parallel, gamma 1"
    unusual = replace(setting, initial_temperature=0.8, noise="reused", snap="every")
    found = line_of(fake_row(unusual, 9.0, 3.0, 5, 1.0))
    assert found == "parallel, gamma 1, initial noise 0.8, drawn reused, snap every"


def test_what_has_no_perplexity_or_no_cost_is_left_out_and_nothing_at_all_is_bare_axes(
    drawn: dict[str, tuple[list[float], list[float]]], tmp_path: Path
) -> None:
    rows = fake_rows()
    rows[2] = replace(rows[2], perplexity=None, perplexity_interval=None)
    rows[3] = replace(rows[3], nfe=None)
    write_pareto_figure(rows, NFE, tmp_path / "a.png", scorer="a scorer")
    assert drawn[line_of(rows[4])][0] == [17]
    for few in ([], rows[:1], [replace(rows[0], perplexity=None, perplexity_interval=None)]):
        write_pareto_figure(few, NFE, tmp_path / "b.png", scorer="a scorer")
        assert (tmp_path / "b.png").read_bytes().startswith(b"\x89PNG")


def test_a_place_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    with pytest.raises(UserError, match="cannot write the figure"):
        write_pareto_figure(fake_rows(), NFE, tmp_path / "mine" / "a.png", scorer="a scorer")
