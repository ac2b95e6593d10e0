"""Figures: written where asked, drawn from the numbers given, without pyplot."""

import subprocess
import sys
from pathlib import Path

import pytest
from matplotlib.image import imread

from fewstep.errors import UserError
from fewstep.evaluation.table import GenerationRow, GenerationTable
from fewstep.lab.report import write_generation_figure
from fewstep.metrics.intervals import Interval


def fake_row(name: str, perplexity: float, entropy: float, readout: str | None = None, k: int | None = None):
    interval = Interval(0.92 * perplexity, 1.08 * perplexity)
    return GenerationRow(
        name,
        readout,
        k,
        None if k is None else 0.0,
        k,
        256,
        perplexity,
        interval,
        entropy,
        5.0,
        0.8,
        None if k is None else 0.1,
    )


def fake_table() -> GenerationTable:
    """Numbers of a plausible size."""
    rows = [
        fake_row("held-out text", 41.0, 3.05),
        fake_row("words shuffled", 980.0, 3.04),
        fake_row("unigram draws", 1900.0, 2.9),
        fake_row("language model", 47.0, 3.01),
    ]
    for k, parallel, commit, entropy in (
        (1, 3300, 140, 1.9),
        (2, 1500, 120, 2.5),
        (4, 800, 100, 2.8),
        (8, 560, 90, 3.0),
    ):
        rows += [fake_row("flow", parallel, entropy, "parallel", k), fake_row("flow", commit, 3.1, "head", k)]
    rows += [fake_row("flow", 480, 3.02, "parallel", 32), fake_row("flow", 84, 3.06, "head", 32)]
    return GenerationTable(tuple(rows), 32, "the run's language model", 0, 64, "cpu")


def test_figures_are_pictures_that_change_with_their_numbers(tmp_path: Path) -> None:
    table = fake_table()
    write_generation_figure(table, tmp_path / "new" / "a.png")
    write_generation_figure(GenerationTable(table.rows[:-2], 32, table.scorer, 0, 64, "cpu"), tmp_path / "b.png")
    ours, theirs = imread(tmp_path / "new" / "a.png"), imread(tmp_path / "b.png")
    assert min(ours.shape[:2]) > 300
    assert ours.std() > 0.05
    assert ours.shape != theirs.shape or (ours != theirs).any()


def test_a_place_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write the figure"):
        write_generation_figure(fake_table(), tmp_path / "file" / "a.png")


def test_pyplot_is_not_loaded() -> None:
    script = "import sys, fewstep.lab.report; sys.exit('matplotlib.pyplot' in sys.modules)"
    subprocess.run([sys.executable, "-c", script], check=True)
