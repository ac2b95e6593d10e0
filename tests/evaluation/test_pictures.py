"""Pictures of diagnostics: what is in the data is in the picture."""

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


def drawn(picture: Picture, file: Path) -> np.ndarray:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        write_picture(picture, file)
    return imread(file)[..., :3]


def is_blue(image: np.ndarray) -> np.ndarray:
    """Where the pixels have the colour of the first series."""
    return np.abs(image - np.array((0x00, 0x72, 0xB2)) / 255).max(-1) < 0.02


def test_every_part_of_the_data_changes_the_picture(tmp_path: Path) -> None:
    changes = {
        "y": replace(LINES, series=(replace(LINE, y=(1.0, 2.1, 1.5)), LINES.series[1])),
        "interval": replace(LINES, series=(replace(LINE, high=(1.2, 2.2, 1.8)), LINES.series[1])),
        "no interval": replace(LINES, series=(replace(LINE, low=None, high=None), LINES.series[1])),
        "one series": replace(LINES, series=(LINE,)),
        "log x": replace(LINES, log_x=True),
        "log y": replace(LINES, log_y=True),
        "title": replace(LINES, title="other"),
        "x label": replace(LINES, x_label="other"),
        "bars": BARS,
    }
    base = drawn(LINES, tmp_path / "new" / "base.png")
    assert min(base.shape[:2]) > 300
    for name, picture in changes.items():
        other = drawn(picture, tmp_path / f"{name}.png")
        assert other.shape != base.shape or (other != base).any(), name


def test_bars_are_as_high_as_their_values(tmp_path: Path) -> None:
    heights = is_blue(drawn(BARS, tmp_path / "bars.png")).sum(0)
    columns = np.nonzero(heights)[0]
    groups = np.split(columns, np.nonzero(np.diff(columns) > 1)[0] + 1)
    found = [int(np.median(heights[group])) for group in groups if len(group) > 10]
    assert [height / max(found) for height in found] == pytest.approx([0.4, 1.0, 0.6], abs=0.05)


def test_zeros_on_logarithmic_axes_empty_series_and_single_points_are_no_failure(tmp_path: Path) -> None:
    zeros = Series("zeros", (0.0, 1.0), (0.0, 0.0))
    for index, picture in enumerate(
        (
            Picture("t", "x", "y", (zeros, LINE), log_x=True, log_y=True),
            Picture("t", "x", "y", (zeros,), log_x=True, log_y=True),
            Picture("t", "x", "y", (Series("none", (), ()),)),
            Picture("t", "x", "y", ()),
            Picture("t", "x", "y", (Series("one", (2.0,), (1.0,)),), kind="bars"),
        )
    ):
        assert drawn(picture, tmp_path / f"{index}.png").std() > 0
    single = drawn(Picture("t", "x", "y", (Series("one", (1.0,), (1.0,)),)), tmp_path / "single.png")
    assert is_blue(single).sum() > 10, "a single point is a dot"


def test_a_place_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write the figure .*file"):
        write_picture(LINES, tmp_path / "file" / "a.png")
