"""The chart of a sweep: one line a setting, points at their costs, whatever is missing left out."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from matplotlib.axes import Axes
from matplotlib.image import imread

from fewstep.errors import UserError
from fewstep.evaluation.charts import NFE, SECONDS, STEPS, line_of, write_sweep_chart
from fewstep.evaluation.rows import FLOW, Row, Value
from fewstep.metrics.intervals import Interval


def fake_row(setting: dict, perplexity: float | None, entropy: float, nfe: int | None, speed: float | None) -> Row:
    interval = None if perplexity is None else Interval(0.9 * perplexity, 1.1 * perplexity)
    values = {"perplexity": Value(perplexity, interval), "entropy_nats": Value(entropy)}
    values |= {} if nfe is None else {"nfe": Value(nfe)}
    values |= {} if speed is None else {"tokens_per_second": Value(speed)}
    return Row(setting, values, 256, (0,), "1" * 12, "0" * 12, {}, 64, "cpu")


def fake_rows() -> list[Row]:
    """Numbers of a plausible size; two readouts, three rules, two temperatures."""
    rows = [
        fake_row({"name": "held-out text"}, 41.0, 3.2, None, None),
        fake_row({"name": "language model"}, 47.0, 3.1, 32, 4000.0),
    ]
    for readout, level, passes in (("parallel", 3000.0, 1), ("head", 200.0, 32)):
        for gamma, gain in (("0", 1.0), ("0.5", 0.8), ("linear:1,0.2", 0.7)):
            for heat in (1.0, 0.9):
                for k in (1, 4, 16):
                    setting = {"name": FLOW, "readout": readout, "num_steps": k, "reinjection": gamma}
                    value = level * gain * heat / k**0.3
                    speed = 20000 / (k + passes)
                    setting["noise_temperature"] = heat
                    rows.append(fake_row(setting, value, 3.1 - 0.5 / k, k + passes, speed))
    return rows


def without(row: Row, name: str) -> Row:
    return replace(row, values={key: value for key, value in row.values.items() if key != name})


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


@pytest.mark.parametrize("cost", [STEPS, NFE, SECONDS])
def test_each_setting_has_a_line_with_a_point_for_each_number_of_steps(
    cost: object, drawn: dict[str, tuple[list[float], list[float]]], tmp_path: Path
) -> None:
    rows = fake_rows()
    write_sweep_chart(list(reversed(rows)), cost, tmp_path / "new" / "a.png", scorer="a scorer")
    assert min(imread(tmp_path / "new" / "a.png").shape[:2]) > 300
    assert len(drawn) == 12
    assert drawn.keys() == {line_of(row) for row in rows[2:]}
    x, y = drawn["parallel, gamma 0.5, noise 0.9"]
    mine = [row for row in rows[2:] if line_of(row) == "parallel, gamma 0.5, noise 0.9"]
    assert x == [cost.of(row) for row in mine]
    assert x == sorted(x)
    assert y == [row.value("perplexity") for row in mine]
    assert NFE.of(mine[0]) == 2
    assert SECONDS.of(mine[0]) == pytest.approx(0.1)


def test_a_line_names_its_controls_where_they_are_unusual() -> None:
    setting = {"name": FLOW, "readout": "parallel", "num_steps": 4, "reinjection": "1", "noise_temperature": 1.0}
    setting |= {"initial_temperature": 1.0, "noise": "fresh", "snap": "none"}
    assert line_of(fake_row(setting, 9.0, 3.0, 5, 1.0)) == "parallel, gamma 1"
    unusual = setting | {"initial_temperature": 0.8, "noise": "reused", "snap": "every"}
    line = line_of(fake_row(unusual, 9.0, 3.0, 5, 1.0))
    assert line == "parallel, gamma 1, initial noise 0.8, drawn reused, snap every"


def test_what_has_no_perplexity_or_no_cost_is_left_out_and_nothing_at_all_is_bare_axes(
    drawn: dict[str, tuple[list[float], list[float]]], tmp_path: Path
) -> None:
    rows = fake_rows()
    rows[2] = without(rows[2], "perplexity")
    rows[3] = without(rows[3], "nfe")
    write_sweep_chart(rows, NFE, tmp_path / "a.png", scorer="a scorer")
    assert drawn[line_of(rows[4])][0] == [17]
    for few in ([], rows[:1], [without(rows[0], "perplexity")]):
        write_sweep_chart(few, NFE, tmp_path / "b.png", scorer="a scorer")
        assert (tmp_path / "b.png").read_bytes().startswith(b"\x89PNG")


def test_a_place_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    with pytest.raises(UserError, match="cannot write the figure"):
        write_sweep_chart(fake_rows(), NFE, tmp_path / "mine" / "a.png", scorer="a scorer")


def test_pyplot_is_not_loaded() -> None:
    script = "import sys, fewstep.evaluation.charts; sys.exit('matplotlib.pyplot' in sys.modules)"
    subprocess.run([sys.executable, "-c", script], check=True)
