"""The chart of a sweep: one line a setting, points at their costs, whatever is missing left out."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from matplotlib.image import imread

from fewstep.evaluation.charts import NFE, SECONDS, STEPS, Cost, score_pictures
from fewstep.evaluation.pictures import write_pictures
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


@pytest.mark.parametrize("cost", [STEPS, NFE, SECONDS])
def test_each_setting_has_a_line_with_a_point_for_each_number_of_steps(cost: Cost) -> None:
    rows = fake_rows()
    quality, entropy = score_pictures(list(reversed(rows)), cost, "a scorer")
    labels = [series.label for series in quality.series]
    assert labels == [series.label for series in entropy.series]
    assert len(set(labels[:12])) == 12 and labels[12:] == ["held-out text", "language model"]
    own = "flow readout=parallel gamma=0.5 noise_temperature=0.9"
    (line,) = (series for series in quality.series if series.label == own)
    axes = ("readout", "reinjection", "noise_temperature")
    mine = [row for row in rows if [row.setting.get(axis) for axis in axes] == ["parallel", "0.5", 0.9]]
    assert line.x == tuple(cost.of(row) for row in mine) and line.x == tuple(sorted(line.x))
    assert line.y == tuple(row.value("perplexity") for row in mine)
    assert line.low == tuple(row.interval("perplexity").low for row in mine)
    band = entropy.series[12]
    assert (band.y, band.low, band.high) == ((3.2, 3.2), pytest.approx((2.9, 2.9)), pytest.approx((3.5, 3.5)))
    assert NFE.of(mine[0]) == 2
    assert SECONDS.of(mine[0]) == pytest.approx(0.1)


def test_what_has_no_perplexity_or_no_cost_is_left_out_and_nothing_at_all_is_bare_axes(tmp_path: Path) -> None:
    rows = fake_rows()
    rows[2], rows[3] = without(rows[2], "perplexity"), without(rows[3], "nfe")
    quality, _ = score_pictures(rows, NFE, "a scorer")
    assert [series.x for series in quality.series if series.label == "flow readout=parallel gamma=0"] == [(17,)]
    for index, few in enumerate((rows, [], rows[:1], [without(rows[0], "perplexity")])):
        write_pictures(score_pictures(few, NFE, "a scorer"), tmp_path / "new" / f"{index}.png")
        assert min(imread(tmp_path / "new" / f"{index}.png").shape[:2]) > 300


def test_pyplot_is_not_loaded() -> None:
    script = "import sys, fewstep.evaluation.charts; sys.exit('matplotlib.pyplot' in sys.modules)"
    subprocess.run([sys.executable, "-c", script], check=True)
