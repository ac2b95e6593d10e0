"""Images of a comparison: distances of every model at every setting it was trained for, and why others are left out."""

from pathlib import Path

import pytest

from fewstep.evaluation.sweep import Sweep
from fewstep.lab.compare.plans import Models, image_plan
from fewstep.lab.compare.runs import MARKER, Run
from fewstep.lab.compare.tables import with_gains
from fewstep.lab.images.study import YARDSTICK
from tests.bundles import with_identity
from tests.lab.images.models import tiny_image_flow


def run_of(name: str, folder: Path, answers: tuple[int, ...] | None = None) -> Run:
    """A run that took three seconds."""
    folder.mkdir(parents=True)
    (folder / MARKER).write_text('{"seconds": 3.0}')
    return Run(name, folder, Path("unused.yaml"), {}, 5, 10.0, answers=answers)


def test_image_models_have_distances_costs_and_gains_and_what_is_ruled_out_says_so(tmp_path: Path) -> None:
    flow, end = run_of("flow_matching", tmp_path / "flow"), run_of("consistency", tmp_path / "end", (1, 2))
    tiny_image_flow().save_pretrained(flow.model)
    with_identity(tiny_image_flow(), estimate="endpoint", objective="Consistency").save_pretrained(end.model)
    models = Models([flow, end], (1, 2), ("0", "1"), "images", "cpu")
    (note,) = models.ruled_out()
    assert note.startswith("consistency, K = 2 with gamma 0, is ruled out: ")
    rows = with_gains(list(Sweep(image_plan(flow.model, models, 8, (0, 1), {})).rows()))
    assert [row.setting["name"] for row in rows] == [YARDSTICK, *["flow_matching"] * 4, *["consistency"] * 3]
    same = {tuple(row.setting.values())[1:]: row for row in rows[1:5]}
    for row in rows[5:]:  # the same network: the same images
        assert row.value("gain") == pytest.approx(1)
        assert row.value("latents") == pytest.approx(same[tuple(row.setting.values())[1:]].value("latents"))
        assert (row.value("passes"), row.value("training_seconds"), row.value("nfe")) == (
            10,
            3,
            row.setting["num_steps"],
        )
