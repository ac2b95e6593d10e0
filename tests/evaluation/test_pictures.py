"""Pictures of diagnostics and sweeps: what is in the data is in the picture."""

import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread

from fewstep.diagnostics.result import Picture, Series
from fewstep.errors import UserError
from fewstep.evaluation.pictures import write_picture

LINE = Series("a", (0.1, 1.0, 10.0), (1.0, 2.0, 1.5), (0.8, 1.7, 1.1), (1.2, 2.3, 1.8))
LINES = Picture("title", "x", "y", (LINE, Series("b", (0.1, 10.0), (0.5, 0.7))))
BARS = Picture("title", "x", "y", (Series("bars", (0.5, 1.5, 2.5), (0.2, 0.5, 0.3)),), kind="bars")
ZEROS = Series("zeros", (0.0, 1.0), (0.0, 0.0))


def drawn(picture: Picture, file: Path) -> np.ndarray:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        write_picture(picture, file)
    return imread(file)[..., :3]


def is_blue(image: np.ndarray) -> np.ndarray:
    """Where the pixels have the colour of the first series."""
    return np.abs(image - np.array((0x00, 0x72, 0xB2)) / 255).max(-1) < 0.02


@pytest.mark.parametrize(
    "change",
    [
        {"series": (replace(LINE, y=(1.0, 2.1, 1.5)), LINES.series[1])},
        {"series": (replace(LINE, high=(1.2, 2.2, 1.8)), LINES.series[1])},
        {"series": (replace(LINE, low=None, high=None), LINES.series[1])},
        {"series": (LINE,)},
        {"log_x": True},
        {"log_y": True},
        {"title": "other"},
        {"x_label": "other"},
        {"kind": "bars"},
    ],
)
def test_every_part_of_the_data_changes_the_picture(change: dict[str, object], tmp_path: Path) -> None:
    base = drawn(LINES, tmp_path / "new" / "base.png")
    other = drawn(replace(LINES, **change), tmp_path / "other.png")
    assert other.shape != base.shape or (other != base).any()


def test_bars_are_as_high_as_their_values(tmp_path: Path) -> None:
    heights = is_blue(drawn(BARS, tmp_path / "bars.png")).sum(0)
    columns = np.nonzero(heights)[0]
    groups = np.split(columns, np.nonzero(np.diff(columns) > 1)[0] + 1)
    found = [int(np.median(heights[group])) for group in groups if len(group) > 10]
    assert [height / max(found) for height in found] == pytest.approx([0.4, 1.0, 0.6], abs=0.05)


@pytest.mark.parametrize("series", [(ZEROS, LINE), (ZEROS,), (Series("none", (), ()),), ()])
def test_zeros_on_logarithmic_axes_and_empty_series_are_no_failure(series: tuple[Series, ...], tmp_path: Path) -> None:
    assert drawn(Picture("t", "x", "y", series, log_x=True, log_y=True), tmp_path / "a.png").std() > 0


@pytest.mark.parametrize("kind", ["lines", "bars"])
def test_a_single_point_is_seen(kind: str, tmp_path: Path) -> None:
    single = Picture("t", "x", "y", (Series("one", (1.0,), (1.0,)),), kind=kind)
    assert is_blue(drawn(single, tmp_path / "single.png")).sum() > 10


def test_a_place_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write the figure .*file"):
        write_picture(LINES, tmp_path / "file" / "a.png")


def test_pyplot_is_not_loaded() -> None:
    script = "import sys, fewstep.evaluation.frontier; sys.exit('matplotlib.pyplot' in sys.modules)"
    subprocess.run([sys.executable, "-c", script], check=True)
