"""The chart of a sweep: one line a setting, points at their costs, whatever is missing left out."""

from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest
from matplotlib.image import imread

from fewstep.evaluation.charts import NFE, SECONDS, STEPS, Cost, score_pictures
from fewstep.evaluation.pictures import write_pictures
from fewstep.evaluation.rows import FLOW, Row, Value
from fewstep.metrics.intervals import Interval


def fake_row(setting: dict, perplexity: float, **values: float) -> Row:
    scores = {"perplexity": Value(perplexity, Interval(0.9 * perplexity, 1.1 * perplexity))}
    scores |= {name: Value(value) for name, value in values.items()}
    return Row(setting, scores, 256, (0,), "1" * 12, "0" * 12, {}, 64, "cpu")


def fake_rows() -> list[Row]:
    """Numbers of a plausible size; two readouts, three rules, two temperatures."""
    rows = [
        fake_row({"name": "held-out text"}, 41.0, entropy_nats=3.2),
        fake_row({"name": "language model"}, 47.0, entropy_nats=3.1, nfe=32, tokens_per_second=4000.0),
    ]
    for readout, gamma, heat, k in product(("parallel", "head"), ("0", "0.5", "linear:1,0.2"), (1.0, 0.9), (1, 4, 16)):
        setting = {"name": FLOW, "readout": readout, "num_steps": k, "reinjection": gamma, "noise_temperature": heat}
        passes = k + (1 if readout == "parallel" else 32)
        perplexity = (3000 if readout == "parallel" else 200) * heat / k**0.3
        speed = 20000 / passes
        rows.append(fake_row(setting, perplexity, entropy_nats=3.1 - 0.5 / k, nfe=passes, tokens_per_second=speed))
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
