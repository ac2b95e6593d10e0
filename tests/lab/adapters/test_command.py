"""`fewstep diagnose --adapter`: the same table for models that are not ours."""

import json
import math
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from fewstep.cli.main import main
from fewstep.diagnostics.dabi import RADII
from fewstep.diagnostics.decoding import rms
from fewstep.evaluation.diagnosis import Diagnosis
from tests.lab.adapters.folders import TOKENS
from tests.runs import ROOT

READOUT = ["token_accuracy", "dabi", "dabi_segment", "dabi_data", "dabi_worst", "dabi_flip", "first_failure"]
READOUT += ["boundary_distance", "boundary_width", "noise_robustness"]
COMMITTED = ["token_accuracy_head", "dabi_head", "cci_noise", "listening", "listening_noise"]
MINE = """
import torch
from fewstep.lab.adapters import Decoder

class EveryTokenByItself:
    def __init__(self, decode):
        self.decode = decode

    def draw(self, z, generator):
        p = self.decode(z).softmax(-1)
        return torch.multinomial(p.flatten(0, 1), 1, generator=generator).view(p.shape[:2])

    def logits(self, z, ids):
        return self.decode(z)

def two_tokens():
    generator = torch.Generator().manual_seed(0)
    normal = torch.randn(6, generator=generator, dtype=torch.float64)
    z = 5 * torch.randn(8, 2, 3, generator=generator, dtype=torch.float64)

    def decode(z):
        lead = z.flatten(1) @ normal
        return torch.stack([lead, 0 * lead], -1)[:, None]

    ids = decode(z).argmax(-1)
    ids[0] = 1 - ids[0]  # an eighth of the tokens is wrong
    return Decoder("two", decode, z, ids, EveryTokenByItself(decode), ("by hand",))
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a module of decoders."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(MINE)
    return tmp_path


def command(name: str, adapter: str, *options: str, examples: int = 8) -> list[str]:
    few = ["--examples", str(examples), "--positions", "1", "--device", "cpu"]
    return ["diagnose", name, "--adapter", adapter, *few, *options]


def stored(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "diagnostics.json").read_text())


def test_a_linear_decoder_of_two_tokens_has_its_closed_forms_on_the_real_command_line(here: Path) -> None:
    arguments = command("mine:two_tokens", "callable", "--effort", "full", "--out", "out")
    done = subprocess.run([sys.executable, "-m", "fewstep", *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = stored(here / "out")
    table = {name: row["value"] for name, row in found["table"].items()}
    assert list(found["results"]) == [*READOUT, *COMMITTED]
    assert (found["model"], found["kind"], found["n"]) == ("two", "text", 6)
    for name in ("dabi", "dabi_worst", "dabi_data", "dabi_head"):
        assert table[name] == pytest.approx(6)
        assert table[f"{name}_fraction"] == pytest.approx(1)
    assert 0 < table["dabi_segment"] < 6
    assert table["token_accuracy"] == table["token_accuracy_head"] == 7 / 8
    assert {table[name] for name in table if name.startswith("cci_noise")} <= {0.0, None}
    assert table["cci_noise_1.2"] == 0.0
    g = torch.Generator().manual_seed(0)
    normal = torch.randn(6, generator=g, dtype=torch.float64)
    z = 5 * torch.randn(8, 2, 3, generator=g, dtype=torch.float64)
    distances = (z.flatten(1) @ normal).abs() / normal.norm() / rms(z)  # in units of the latents' rms
    assert table["boundary_distance_p50"] == pytest.approx(float(distances.quantile(0.5)))
    assert "by hand" in done.stdout.splitlines()
    shown = {line.split()[0]: line.split()[1] for line in done.stdout.splitlines() if re.match(r"(dabi|token)", line)}
    assert shown["dabi_fraction"] == "1"
    assert len(list((here / "out" / "pictures").glob("*.png"))) >= 6


@pytest.mark.parametrize(
    ("kind", "adapter", "options"),
    [
        ("gpt2", "causal-lm", ()),
        ("bert", "masked-lm", ()),
        ("encoder", "encoder-linear", ("--readout", "tied")),
        ("bart", "seq2seq", ()),
    ],
)
def test_a_model_of_transformers_has_the_table_of_our_own_with_its_protocol(
    shop: Path, here: Path, capsys: pytest.CaptureFixture[str], kind: str, adapter: str, options: tuple[str, ...]
) -> None:
    measured = "token_accuracy,boundary_distance,dabi_flip" + ",token_accuracy_head" * (adapter == "seq2seq")
    text = ["--text", str(shop / "text.jsonl"), "--tokens", str(TOKENS), "--cache_dir", str(shop / "cache")]
    line = command(str(shop / kind), adapter, *options, *text, "--only", measured, examples=4)
    assert main(line) == 0
    out, found = capsys.readouterr().out, stored(here / f"diagnosis-{kind}")
    assert ("token_accuracy_head" in found["table"]) == (adapter == "seq2seq")
    protocol = found["protocol"]
    assert protocol["data"]["source"] == str(shop / "text.jsonl")
    assert len(protocol["data"]["fingerprint"]) == 24
    assert {"fewstep", "torch", "transformers", "tokenizers"} == set(protocol["versions"])
    shared = ("radii", "num_isotropic", "num_probes", "examples", "positions", "block_length", "seed", "response")
    assert [protocol[name] for name in shared] == [list(RADII), 4, 8, 4, 1, TOKENS, 0, "whole output"]
    assert found["notes"][0].startswith(f"{adapter}: latent: ")
    assert found["notes"][0] in out.splitlines()
    assert main([*line, "--overwrite"]) == 0
    again = stored(here / f"diagnosis-{kind}")
    assert again.pop("provenance") != found.pop("provenance"), "the commands differ"
    assert again == found


def test_the_protocol_of_the_paper_has_one_layout_whatever_the_decoder(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("diffusers")
    from tests.lab.adapters.test_images import write_model

    (here / "photos").mkdir()
    for place in range(3):
        Image.new("L", (8, 8), 80 * place).save(here / "photos" / f"{place}.png")
    write_model(here / "kl")
    paper = ["--protocol", "paper", "--device", "cpu", "--out"]
    assert main(["diagnose", "mine:two_tokens", "--adapter", "callable", "--whiten", *paper, "text"]) == 0
    assert main(["diagnose", "kl", "--adapter", "autoencoder-kl", "--images", "photos", *paper, "images"]) == 0
    words, pictures = (stored(here / kind) for kind in ("text", "images"))
    assert set(words) == set(pictures) == {*(field.name for field in fields(Diagnosis)), "table"}
    assert set(words["protocol"]) == set(pictures["protocol"])
    assert (words["num_examples"], pictures["num_examples"]) == (8, 3)
    results = ["token_accuracy", "dabi", "dabi_segment", "dabi_data", "first_failure", "cci_noise"]
    assert list(words["results"]) == results
    assert list(pictures["results"]) == ["reconstruction_error", "dabi_segment", "dabi_data_segment"]
    assert (pictures["kind"], pictures["n"], pictures["num_positions"]) == ("images", 2 * 4 * 4, None)
    assert pictures["protocol"]["data"] == {"source": "photos", "shape": [3, 8, 8]}
    assert set(pictures["protocol"]["versions"]) == {"fewstep", "torch", "diffusers"}
    assert words["table"]["dabi"]["value"] == pytest.approx(6)
    assert words["table"]["first_failure_ratio"]["value"] > 1
    assert "protocol paper: 3 examples, the data has no more; it asks for 512" in capsys.readouterr().out.splitlines()


def test_the_example_in_the_documentation_runs_as_it_stands(here: Path) -> None:
    page = (ROOT / "docs" / "howto" / "other-models.md").read_text()
    (code,) = re.findall(r"```python\n# my_model\.py\n(.*?)```", page, flags=re.S)
    (line,) = re.findall(r"^fewstep (diagnose my_model:\w+ .*)$", page, flags=re.M)
    (here / "my_model.py").write_text(code)
    assert main(line.split()) == 0
    found = stored(here / "diagnosis-my_model-decoder")
    assert found["table"]["dabi"]["value"] is not None
    assert math.isfinite(found["table"]["token_accuracy"]["value"])
