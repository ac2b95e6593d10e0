"""`fewstep diagnose --adapter`: the same table for models that are not ours, and every refusal in one line."""

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
from fewstep.evaluation.measurements import MEASUREMENTS
from tests.lab.adapters.folders import TOKENS, write
from tests.lab.adapters.test_images import write_kl
from tests.runs import ROOT, write_text

READOUT = ["token_accuracy", "dabi", "dabi_segment", "dabi_data", "dabi_worst", "dabi_flip", "first_failure"]
READOUT += ["boundary_distance", "boundary_width", "noise_robustness"]
COMMITTED = ["token_accuracy_head", "dabi_head", "cci_noise", "listening", "listening_noise"]
LINEAR = """
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

def orthonormal():
    z = torch.randn(8, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    matrix = torch.linalg.qr(torch.randn(4, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64))[0]
    images = (z @ matrix.T).reshape(8, 1, 2, 2)
    return Decoder("straight", lambda x: (x @ matrix.T).reshape(-1, 1, 2, 2), z, images)
"""


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiny models, a text and its cache, and a module with decoders."""
    folder = tmp_path_factory.mktemp("shop")
    write_text(folder / "text.jsonl")
    for kind in ("gpt2", "bert", "encoder", "bart"):
        write(folder / kind, kind)
    write_kl(folder / "kl")
    (folder / "mine.py").write_text(LINEAR)
    return folder


def command(shop: Path, name: str, adapter: str, *options: str | Path, examples: int = 4) -> list[str]:
    """``diagnose`` of a model in the shop, on few examples and positions; ``options`` come last."""
    path = str(shop / name) if (shop / name).exists() else name
    text = [] if adapter in ("callable", "autoencoder-kl") else ["--text", str(shop / "text.jsonl")]
    text += ["--tokens", str(TOKENS)] if text else []
    few = ["--examples", str(examples), "--positions", "1", "--cache_dir", str(shop / "cache"), "--device", "cpu"]
    return ["diagnose", path, "--adapter", adapter, *text, *few, *map(str, options)]


def stored(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "diagnostics.json").read_text())


def test_a_linear_decoder_of_two_tokens_has_its_closed_forms_on_the_real_command_line(
    shop: Path, tmp_path: Path
) -> None:
    arguments = command(shop, "mine:two_tokens", "callable", "--effort", "full", "--out", tmp_path, examples=8)
    script = "import sys; from fewstep.cli.main import main; sys.exit(main(sys.argv[1:]))"
    done = subprocess.run([sys.executable, "-c", script, *arguments], cwd=shop, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = stored(tmp_path)
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
    assert "by hand" in done.stdout.splitlines()
    shown = {line.split()[0]: line.split()[1] for line in done.stdout.splitlines() if re.match(r"(dabi|token)", line)}
    assert shown["dabi_fraction"] == "1"
    assert len(list((tmp_path / "pictures").glob("*.png"))) >= 6


def test_distances_are_in_units_of_the_latents_rms(shop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(shop)
    assert main(command(shop, "mine:two_tokens", "callable", "--out", tmp_path, examples=8)) == 0
    g = torch.Generator().manual_seed(0)
    normal = torch.randn(6, generator=g, dtype=torch.float64)
    z = 5 * torch.randn(8, 2, 3, generator=g, dtype=torch.float64)
    distances = (z.flatten(1) @ normal).abs() / normal.norm() / rms(z)
    expected = float(distances.quantile(0.5))
    assert stored(tmp_path)["table"]["boundary_distance_p50"]["value"] == pytest.approx(expected)


def test_an_orthonormal_image_decoder_has_1_in_every_direction_and_no_error(
    shop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(shop)
    assert main(command(shop, "mine:orthonormal", "callable", "--out", tmp_path / "white", "--whiten", examples=8)) == 0
    assert stored(tmp_path / "white")["protocol"]["whitened"]
    assert main(command(shop, "mine:orthonormal", "callable", "--out", tmp_path, examples=8)) == 0
    found = stored(tmp_path)
    assert not found["protocol"]["whitened"]
    assert list(found["results"]) == ["reconstruction_error", "dabi_segment", "dabi_data_segment", "dabi_worst"]
    for name in ("dabi_segment", "dabi_data_segment", "dabi_worst"):
        assert found["table"][f"{name}_at_0.1"]["value"] == pytest.approx(1)
        assert found["table"][name]["value"] == pytest.approx(1, abs=0.1)  # its trace is estimated
    assert found["table"]["reconstruction_error"]["value"] == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(
    ("kind", "adapter", "options", "conditionals"),
    [
        ("gpt2", "causal-lm", (), False),
        ("bert", "masked-lm", (), False),
        ("encoder", "encoder-linear", ("--readout", "tied"), False),
        ("bart", "seq2seq", (), True),
    ],
)
def test_a_model_of_transformers_has_the_table_of_our_own_with_its_protocol(
    shop: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    kind: str,
    adapter: str,
    options: tuple[str, ...],
    conditionals: bool,
) -> None:
    monkeypatch.chdir(tmp_path)
    measured = ["--only", "token_accuracy,boundary_distance,dabi_flip,token_accuracy_head"] if conditionals else []
    measured = measured or ["--only", "token_accuracy,boundary_distance,dabi_flip"]
    assert main(command(shop, kind, adapter, *options, *measured)) == 0
    out, err = capsys.readouterr()
    assert "Traceback" not in err
    found = stored(tmp_path / f"diagnosis-{kind}")
    assert ("token_accuracy_head" in found["table"]) == conditionals
    protocol = found["protocol"]
    assert protocol["data"]["source"] == str(shop / "text.jsonl")
    assert len(protocol["data"]["fingerprint"]) == 24
    assert {"fewstep", "torch", "transformers", "tokenizers"} == set(protocol["versions"])
    shared = ("radii", "num_isotropic", "num_probes", "examples", "positions", "block_length", "seed", "response")
    assert [protocol[name] for name in shared] == [list(RADII), 4, 8, 4, 1, TOKENS, 0, "whole output"]
    assert found["notes"][0].startswith(f"{adapter}: latent: ")
    assert found["notes"][0] in out.splitlines()
    assert main(command(shop, kind, adapter, *options, *measured, "--overwrite")) == 0
    again = stored(tmp_path / f"diagnosis-{kind}")
    assert again.pop("provenance") != found.pop("provenance"), "the commands differ"
    assert again == found


def test_an_autoencoder_of_diffusers_has_the_table_of_images(shop: Path, tmp_path: Path) -> None:
    pytest.importorskip("diffusers")
    options = ["--images", "digits", "--out", tmp_path, "--only", "reconstruction,dabi"]
    assert main(command(shop, "kl", "autoencoder-kl", *options)) == 0
    found = stored(tmp_path)
    assert (found["kind"], found["n"], found["num_positions"]) == ("images", 2 * 4 * 4, None)
    assert list(found["results"]) == ["reconstruction_error", "dabi_segment", "dabi_data_segment"]
    assert found["protocol"]["data"] == {"source": "digits", "shape": [3, 8, 8]}
    assert set(found["protocol"]["versions"]) == {"fewstep", "torch", "diffusers"}
    assert found["table"]["dabi_segment"]["value"] > 0


def test_the_protocol_of_the_paper_has_one_layout_whatever_the_decoder(
    shop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("diffusers")
    monkeypatch.chdir(shop)
    (tmp_path / "photos").mkdir()
    for place in range(3):
        Image.new("L", (8, 8), 80 * place).save(tmp_path / "photos" / f"{place}.png")
    paper = ["--protocol", "paper", "--device", "cpu", "--out"]
    text = ["diagnose", "mine:two_tokens", "--adapter", "callable", "--whiten", *paper, str(tmp_path / "text")]
    kl = ["diagnose", "kl", "--adapter", "autoencoder-kl", "--images", str(tmp_path / "photos")]
    assert main(text) == 0
    assert main([*kl, *paper, str(tmp_path / "images")]) == 0
    words, pictures = (stored(tmp_path / kind) for kind in ("text", "images"))
    assert set(words) == set(pictures) == {*(field.name for field in fields(Diagnosis)), "table"}
    assert set(words["protocol"]) == set(pictures["protocol"])
    assert (words["num_examples"], pictures["num_examples"]) == (8, 3)
    results = ["token_accuracy", "dabi", "dabi_segment", "dabi_data", "first_failure", "cci_noise"]
    assert list(words["results"]) == results
    assert list(pictures["results"]) == ["reconstruction_error", "dabi_segment", "dabi_data_segment"]
    assert words["table"]["dabi"]["value"] == pytest.approx(6)
    assert words["table"]["first_failure_ratio"]["value"] > 1
    assert "protocol paper: 3 examples, the data has no more; it asks for 512" in capsys.readouterr().out.splitlines()


def test_what_asks_for_conditionals_is_left_out_where_there_are_none_and_said(
    shop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cheap = {name: MEASUREMENTS[name] for name in ("token_accuracy", "boundary_distance", "token_accuracy_head", "cci")}
    monkeypatch.setattr("fewstep.evaluation.diagnosis.MEASUREMENTS", cheap)
    assert main(command(shop, "gpt2", "causal-lm", "--out", tmp_path)) == 0
    assert stored(tmp_path)["left_out"] == {"token_accuracy_head": "head", "cci": "head"}
    assert "left out: cci, since the model has no head" in capsys.readouterr().out.splitlines()
    assert main(command(shop, "gpt2", "causal-lm", "--out", tmp_path, "--overwrite", "--only", "cci")) == 2
    assert "has no head, which cci needs" in capsys.readouterr().err


def test_a_decoder_whose_numbers_are_not_finite_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "odd_decoders.py").write_text(
        "import torch\nfrom fewstep.lab.adapters import Decoder\n"
        "def made(decode, z=torch.ones(4, 3)):\n"
        "    return Decoder('odd', decode, z, torch.zeros(4, 2).long())\n"
        "def nan():\n    return made(lambda z: torch.full((len(z), 2, 3), float('nan')))\n"
        "def flat():\n    return made(lambda z: z)\n"
        "def short():\n    return made(lambda z: z[:, None, :])\n"
        "def zero():\n    return made(lambda z: z, torch.zeros(4, 3))\n"
    )
    for name, message in (
        ("nan", "does not give a tensor of finite numbers"),
        ("flat", "gives logits of shape (1, 3) for one example of 2 tokens"),
        ("short", "expected (1, 2, V)"),
        ("zero", "latents of rms 0.0"),
    ):
        assert main(command(tmp_path, f"odd_decoders:{name}", "callable", "--out", tmp_path / "out")) == 2
        assert message in capsys.readouterr().err


def test_the_example_in_the_documentation_runs_as_it_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = (ROOT / "docs" / "howto" / "other-models.md").read_text()
    (code,) = re.findall(r"```python\n# my_model\.py\n(.*?)```", page, flags=re.S)
    (line,) = re.findall(r"^fewstep (diagnose my_model:\w+ .*)$", page, flags=re.M)
    (tmp_path / "my_model.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    assert main(line.split()) == 0
    found = stored(tmp_path / "diagnosis-my_model-decoder")
    assert found["table"]["dabi"]["value"] is not None
    assert math.isfinite(found["table"]["token_accuracy"]["value"])
