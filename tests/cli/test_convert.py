"""`fewstep convert`: checkpoints of the stages become one folder."""

from pathlib import Path

import pytest

from fewstep.cli.main import main
from fewstep.model import SavedModel
from fewstep.pipeline import TextGenerator
from tests.bundles import only, tiny_bundle, write_checkpoint


def test_checkpoints_of_the_stages_become_one_model_that_writes_the_same_text(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = tiny_bundle()
    flow = write_checkpoint(only(whole, "autoencoder", "readout", "denoiser"), tmp_path / "flow.ckpt", "denoiser")
    head = write_checkpoint(only(whole, "autoencoder", "head"), tmp_path / "head.ckpt", "head")
    only(whole, "language_model").save_pretrained(tmp_path / "scorer")
    sources = [str(flow), str(head), str(tmp_path / "scorer")]
    assert main(["convert", *sources, str(tmp_path / "model")]) == 0
    assert "autoencoder, readout, denoiser, head, language_model" in capsys.readouterr().out
    loaded = SavedModel.from_pretrained(tmp_path / "model")
    for readout in ("parallel", "head"):
        texts = TextGenerator(loaded).generate(2, readout=readout).texts
        assert texts == TextGenerator(whole).generate(2, readout=readout).texts


def test_refusals_are_one_line_and_exit_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = str(write_checkpoint(tiny_bundle(), tmp_path / "a.ckpt", "denoiser"))
    other = str(write_checkpoint(tiny_bundle(seed=1), tmp_path / "b.ckpt", "denoiser"))
    model = str(tmp_path / "model")
    assert main(["convert", file, model]) == 0
    capsys.readouterr()
    for arguments, message in (
        ([file, model], "exists already"),
        ([file, other, str(tmp_path / "new")], "different autoencoders"),
    ):
        assert main(["convert", *arguments]) == 2
        err = capsys.readouterr().err
        assert err.count("\n") == 1
        assert message in err
    assert main(["convert", other, model, "--overwrite"]) == 0
