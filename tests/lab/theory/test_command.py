"""`fewstep theory`: a picture and a JSON file a study, no study made twice, and every refusal in one line."""

import json
from pathlib import Path

import pytest

from fewstep.cli.main import main

FEW = ["--effort", "0.01", "--max_modes", "1024"]


def theory(folder: Path, *options: str) -> int:
    return main(["theory", *FEW, "--out", str(folder), *options])


def test_every_study_is_one_picture_and_one_file_and_is_not_made_twice(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert theory(tmp_path, "--coarea", "--dimension") == 0
    assert {file.name for file in tmp_path.iterdir()} == {
        "coarea.json",
        "coarea.png",
        "dimension.json",
        "dimension.png",
    }
    stored = json.loads((tmp_path / "dimension.json").read_text())
    assert stored["settings"]["max_modes"] == 1024
    assert [row["note"] for row in stored["rows"]][:2] == ["expected 1", "expected 0.5"]
    assert "exponent of M, n = 1" in capsys.readouterr().out
    before = (tmp_path / "coarea.json").stat().st_mtime_ns
    assert theory(tmp_path, "--coarea", "--surface") == 0
    assert "is there already" in capsys.readouterr().out
    assert (tmp_path / "coarea.json").stat().st_mtime_ns == before
    assert (tmp_path / "surface.png").stat().st_size > 1000


def test_a_study_does_not_depend_on_which_others_are_made(tmp_path: Path) -> None:
    assert theory(tmp_path / "both", "--coarea", "--dimension") == 0
    assert theory(tmp_path / "one", "--dimension", "--path", "linear") == 0
    both, one = (json.loads((tmp_path / name / "dimension.json").read_text()) for name in ("both", "one"))
    assert both.pop("provenance") != one.pop("provenance"), "their commands differ"
    assert both == one


def test_other_settings_in_the_same_folder_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert theory(tmp_path, "--coarea") == 0
    assert theory(tmp_path, "--coarea", "--seed", "1") == 2
    assert "--overwrite" in capsys.readouterr().err
    assert theory(tmp_path, "--coarea", "--seed", "1", "--overwrite") == 0
