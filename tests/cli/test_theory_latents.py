"""The study of the exact denoiser as a command: it goes on where it stopped, and refuses in one line."""

from pathlib import Path

import pytest

from fewstep.cli.edge import run
from fewstep.cli.theory_latents import ROWS_FILE, TABLE_FILE, main
from tests.bundles import only, tiny_bundle, with_identity
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
    assert run(main, command(shop, tmp_path, "--max_rows", "2")) == 0
    first = (folder / ROWS_FILE).read_text()
    assert first.count("\n") == 2
    assert run(main, command(shop, tmp_path)) == 0
    whole = (folder / ROWS_FILE).read_text()
    assert whole.startswith(first)
    capsys.readouterr()
    assert run(main, command(shop, tmp_path)) == 0
    assert (folder / ROWS_FILE).read_text() == whole
    out = capsys.readouterr().out
    assert (folder / TABLE_FILE).read_text() in out
    assert " wrong, distance " not in out.split("| samples |")[0]


def test_refusals_are_one_line(shop: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for argv, said in (
        (["--out", str(tmp_path)], "--latents MODEL"),
        (command(shop, tmp_path, "--num_latents", "100000"), "train blocks without padding"),
    ):
        assert run(main, argv) == 2
        err = capsys.readouterr().err
        assert said in err.splitlines()[-1]
        assert "Traceback" not in err
