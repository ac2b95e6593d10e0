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
