"""What is wrong with a model is told in one line, before anything large is read or any code is run."""

import json
import shutil
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from fewstep.cli.diagnose import DiagnoseOptions
from fewstep.data.tokenizer import load_tokenizer
from tests.lab.adapters.folders import load, options_of, refusal


def copied(shop: Path, kind: str, tmp_path: Path) -> Path:
    return Path(shutil.copytree(shop / kind, tmp_path / kind))


@pytest.mark.parametrize(
    ("adapter", "kind", "message"),
    [
        ("causal-lm", "encoder", "is BertModel and not a causal language model"),
        ("causal-lm", "bert", "is BertForMaskedLM and not a causal language model"),
        ("masked-lm", "gpt2", "cannot be loaded as a masked language model (Unrecognized configuration class"),
        ("seq2seq", "llama", "cannot be loaded as an encoder-decoder model (Unrecognized configuration class"),
    ],
)
def test_a_model_of_another_kind_is_refused_by_its_name(shop: Path, adapter: str, kind: str, message: str) -> None:
    assert message in refusal(adapter, options_of(shop, kind))


def test_weights_that_are_missing_are_named_and_those_that_are_not_used_are_noted(shop: Path, tmp_path: Path) -> None:
    folder = copied(shop, "gpt2", tmp_path)
    weights = load_file(folder / "model.safetensors")
    gone = "transformer.h.1.mlp.c_fc.weight"
    save_file({name: value for name, value in weights.items() if name != gone}, folder / "model.safetensors")
    assert f"lacks 1 weights of a causal language model, first {gone}" in refusal("causal-lm", options_of(shop, folder))
    save_file({**weights, "extra.weight": torch.zeros(2)}, folder / "model.safetensors")
    decoder = load("causal-lm", options_of(shop, folder))
    assert decoder.notes[1:] == ("1 weights of the file are not used, first extra.weight",)
    save_file({**weights, gone: torch.zeros(3, 3)}, folder / "model.safetensors")
    assert gone in refusal("causal-lm", options_of(shop, folder))


def test_a_pickle_is_read_only_when_asked_for(shop: Path, tmp_path: Path) -> None:
    folder = copied(shop, "llama", tmp_path)
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    assert "--allow_pickle" in refusal("causal-lm", options_of(shop, folder))
    ours = load("causal-lm", options_of(shop, folder, allow_pickle=True))
    theirs = load("causal-lm", options_of(shop, "llama"))
    assert torch.equal(ours.z, theirs.z)
    (folder / "pytorch_model.bin").unlink()
    assert "holds no weights" in refusal("causal-lm", options_of(shop, folder))


def test_code_of_a_model_is_run_only_when_it_is_trusted(shop: Path, tmp_path: Path) -> None:
    folder = copied(shop, "gpt2", tmp_path)
    mark = tmp_path / "ran"
    (folder / "mine.py").write_text(
        "from pathlib import Path\n"
        f"Path({str(mark)!r}).write_text('')\n"
        "from transformers import GPT2Config as Base, GPT2LMHeadModel as Model\n"
        "class MineConfig(Base):\n    model_type = 'mine'\n"
        "class Mine(Model):\n    config_class = MineConfig\n"
    )
    auto = {"AutoConfig": "mine.MineConfig", "AutoModelForCausalLM": "mine.Mine"}
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "mine", "auto_map": auto, "architectures": ["Mine"]}
    (folder / "config.json").write_text(json.dumps(config))
    assert "brings code of its own: pass --trust_remote_code" in refusal("causal-lm", options_of(shop, folder))
    assert not mark.exists()
    ours = load("causal-lm", options_of(shop, folder, trust_remote_code=True))
    assert mark.exists()
    assert torch.equal(ours.z, load("causal-lm", options_of(shop, "gpt2")).z)


def test_weights_larger_than_the_machine_are_refused_before_they_are_read(
    shop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = copied(shop, "llama", tmp_path)
    monkeypatch.setattr("os.sysconf", lambda name: 2**15)  # bytes of a page, and pages: 1 GiB
    shape, size = [2**15, 2**16], 2**32  # bytes, all of them a hole in the file
    header = json.dumps({"w": {"dtype": "BF16", "shape": shape, "data_offsets": [0, size]}}).encode()
    with (folder / "model.safetensors").open("wb") as stream:
        stream.write(struct.pack("<Q", len(header)) + header)
        stream.truncate(8 + len(header) + size)
    assert "needs 8.0 GiB for its weights, and the machine has 1.0 GiB" in refusal(
        "causal-lm", options_of(shop, folder)
    )
    assert "needs 4.0 GiB" in refusal("causal-lm", options_of(shop, folder, dtype="bfloat16"))
    (folder / "model.safetensors").write_bytes(b"no header")
    assert "cannot be read as safetensors" in refusal("causal-lm", options_of(shop, folder))


def test_a_tokenizer_of_another_model_and_blocks_that_are_too_long_are_told(shop: Path, tmp_path: Path) -> None:
    folder = copied(shop, "encoder", tmp_path)
    tokenizer = load_tokenizer(folder)
    tokenizer.add_special_tokens({"eos_token": "<other>"})
    tokenizer.save_pretrained(folder)
    message = refusal("encoder-linear", options_of(shop, folder))
    assert "give a folder in which tokenizer and model belong together" in message
    assert "longer than the 32 positions" in refusal("masked-lm", options_of(shop, "bert", tokens=31))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (":function", "expected module:function"),
        ("mine_module:fails", "fails (ZeroDivisionError: division by zero)"),
        ("broken_module:fails", "cannot be imported: SyntaxError: "),
        ("mine_module:odd", "decoder odd has latents of shape (2, 3) and data of shape (3, 1)"),
    ],
)
def test_a_callable_that_gives_no_decoder_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken_module.py").write_text("def fails(:\n")
    (tmp_path / "mine_module.py").write_text(
        "import torch\nfrom fewstep.lab.adapters import Decoder\n"
        "def fails():\n    return 1 / 0\n"
        "def odd():\n    return Decoder('odd', lambda z: z, torch.ones(2, 3), torch.zeros(3, 1).long())\n"
    )
    assert message in refusal("callable", DiagnoseOptions(model=name))
