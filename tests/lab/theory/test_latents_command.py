"""The study of the exact denoiser as a command: it goes on where it stopped, and refuses in one line."""

import json
from pathlib import Path

import pytest

from fewstep.cli.main import errors_to_exit_code
from fewstep.lab.theory.exact_picture import exact_picture
from fewstep.lab.theory.exact_rows import ExactRow, ExactSetting
from fewstep.lab.theory.latents_command import PICTURE_FILE, ROWS_FILE, TABLE_FILE, main
from fewstep.provenance import provenance
from tests.bundles import only, tiny_bundle, with_identity
from tests.cli.shops import rows_in
from tests.runs import write_text


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text, and a model on it that has no denoiser: none is needed."""
    folder = tmp_path_factory.mktemp("shop")
    source = write_text(folder / "text.jsonl")
    bundle = only(with_identity(tiny_bundle(), source=str(source)), "autoencoder", "readout")
    bundle.save_pretrained(folder / "model")
    return folder


def command(shop: Path, out: Path, *options: str) -> list[str]:
    few = ["--num_latents", "8", "--samples", "3", "--device", "cpu", "--cache_dir", str(shop / "cache")]
    return ["--latents", str(shop / "model"), "--out", str(out), *few, *options]


def test_a_stopped_study_goes_on_and_a_whole_one_adds_nothing(
    shop: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "latents"
    assert errors_to_exit_code(main, command(shop, tmp_path, "--max_rows", "2")) == 0
    rows = rows_in(folder / ROWS_FILE)
    assert len(rows) == 2
    assert all(
        row.pop("provenance") == provenance("theory", command(shop, tmp_path, "--max_rows", "2")) for row in rows
    )
    first = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (folder / ROWS_FILE).write_text(first)  # as it was before rows carried their provenance
    assert errors_to_exit_code(main, command(shop, tmp_path)) == 0
    whole = (folder / ROWS_FILE).read_text()
    assert whole.startswith(first)
    later = rows_in(folder / ROWS_FILE)[2:]
    assert later and all(row["provenance"] == provenance("theory", command(shop, tmp_path)) for row in later)
    capsys.readouterr()
    assert errors_to_exit_code(main, command(shop, tmp_path)) == 0
    assert (folder / ROWS_FILE).read_text() == whole
    out = capsys.readouterr().out
    assert (folder / TABLE_FILE).read_text() in out
    assert " wrong, distance " not in out.split("| samples |")[0]
    assert (folder / PICTURE_FILE).read_bytes().startswith(b"\x89PNG")


def test_refusals_are_one_line(shop: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for argv, said in (
        (["--out", str(tmp_path)], "--latents MODEL"),
        (command(shop, tmp_path, "--num_latents", "100000"), "train blocks without padding"),
    ):
        assert errors_to_exit_code(main, argv) == 2
        err = capsys.readouterr().err
        assert said in err.splitlines()[-1]
        assert "Traceback" not in err


def made(
    kind: str, h: float, steps: int | None, shares: tuple[float, ...], gamma: float = 0.0, **more: float
) -> ExactRow:
    setting = ExactSetting(kind, h, steps, gamma, **more)
    return ExactRow(setting, "model", 8, len(shares), 0, shares, (1.0,) * len(shares), matched=kind == "noise")


def test_the_picture_shows_the_shares_of_the_widest_latents_without_a_cap() -> None:
    rows = [
        made("draws", 0.7, None, (0.02, 0.04)),
        made("flow", 0.0, 4, (0.9, 0.9)),
        made("flow", 0.7, 8, (0.1, 0.3)),
        made("flow", 0.7, 4, (0.5, 0.7)),
        made("flow", 0.7, 4, (0.8, 0.8), cap=2.0),
        made("flow", 0.7, 4, (0.1, 0.1), gamma=1.0),
        made("flow", 0.7, 8, (0.0, 0.0), gamma=1.0),
        made("noise", 0.7, 4, (0.2, 0.2), matches=1.0),
        made("noise", 0.7, 4, (0.4, 0.4), matches=0.5),
    ]
    picture = exact_picture(rows)
    assert picture is not None
    lines = {series.label: dict(zip(series.x, series.y, strict=True)) for series in picture.series}
    assert lines["deterministic"] == pytest.approx({4.0: 0.6, 8.0: 0.2})
    assert lines["re-injection 1"] == pytest.approx({4.0: 0.1})  # none wrong: nothing to show on a log axis
    assert lines["deterministic, colder"] == pytest.approx({4.0: 0.2})
    assert lines["draws of the law itself"] == pytest.approx({4.0: 0.03, 8.0: 0.03})
    first = picture.series[0]
    assert (first.low[0], first.high[0]) == pytest.approx((0.5, 0.7))  # of two samples a resample has one twice
    assert exact_picture(rows[:1]) is None
