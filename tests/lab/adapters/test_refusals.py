"""What is wrong with a model is told in one line, before anything large is read or any code is run."""

import json
import shutil
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from fewstep.errors import UserError
from fewstep.evaluation import memory as room
from fewstep.evaluation.memory import bytes_needed
from fewstep.lab.adapters import (
    Loading,
    ReadoutChoice,
    TextSource,
    load_callable,
    load_causal_lm,
    load_encoder_linear,
    load_masked_lm,
    load_seq2seq,
)
from tests.lab.adapters.folders import WIDTH, word_tokenizer

LOADING = Loading()
ADAPTERS: dict[str, Callable[..., Any]] = {
    "causal-lm": load_causal_lm,
    "masked-lm": load_masked_lm,
    "seq2seq": load_seq2seq,
    "encoder-linear": lambda path, source, loading: load_encoder_linear(path, source, loading, ReadoutChoice("tied")),
}


def refusal(adapter: str, folder: Path | str, source: TextSource, loading: Loading = LOADING) -> str:
    with pytest.raises(UserError, match=r"^[^\n]*$") as caught:
        ADAPTERS[adapter](str(folder), source, loading)
    return str(caught.value)


def copied(shop: Path, kind: str, tmp_path: Path) -> Path:
    return Path(shutil.copytree(shop / kind, tmp_path / kind))


def change_config(folder: Path, **changes: object) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


@pytest.mark.parametrize(
    ("adapter", "kind", "message"),
    [
        ("causal-lm", "encoder", "is BertModel and not a causal language model: take the --adapter that fits it"),
        ("causal-lm", "bert", "is BertForMaskedLM and not a causal language model"),
        ("causal-lm", "t5", "is T5ForConditionalGeneration and not a causal language model"),
        ("masked-lm", "gpt2", "is GPT2LMHeadModel and not a masked language model"),
        ("masked-lm", "encoder", "is BertModel and not a masked language model"),
        ("seq2seq", "llama", "is LlamaForCausalLM and not an encoder-decoder model"),
    ],
)
def test_a_model_of_another_kind_is_refused_by_its_name(
    shop: Path, source: TextSource, adapter: str, kind: str, message: str
) -> None:
    assert message in refusal(adapter, shop / kind, source)


def test_what_is_no_model_is_told(shop: Path, source: TextSource, tmp_path: Path) -> None:
    assert "no folder" in refusal("causal-lm", tmp_path / "none", source)
    assert "holds no config.json" in refusal("causal-lm", tmp_path, source)
    broken = copied(shop, "gpt2", tmp_path)
    (broken / "config.json").write_text("{")
    assert "cannot be read as JSON" in refusal("causal-lm", broken, source)
    (broken / "config.json").write_text("[]")
    assert "holds no settings of a model" in refusal("causal-lm", broken, source)
    (broken / "config.json").write_text('{"model_type": "mine"}')
    assert "model type 'mine', which transformers" in refusal("causal-lm", broken, source)


def test_weights_that_are_missing_are_named_and_those_that_are_not_used_are_noted(
    shop: Path, source: TextSource, tmp_path: Path
) -> None:
    folder = copied(shop, "gpt2", tmp_path)
    weights = load_file(folder / "model.safetensors")
    gone = "transformer.h.1.mlp.c_fc.weight"
    save_file({name: value for name, value in weights.items() if name != gone}, folder / "model.safetensors")
    assert f"lacks 1 weights of a causal language model, first {gone}" in refusal("causal-lm", folder, source)
    save_file({**weights, "extra.weight": torch.zeros(2)}, folder / "model.safetensors")
    decoder, _ = load_causal_lm(str(folder), source, LOADING)
    assert decoder.notes[1:] == ("1 weights of the file are not used, first extra.weight",)
    save_file({**weights, gone: torch.zeros(3, 3)}, folder / "model.safetensors")
    assert gone in refusal("causal-lm", folder, source)


def test_an_encoder_needs_no_pooler(shop: Path, source: TextSource, tmp_path: Path) -> None:
    folder = copied(shop, "encoder", tmp_path)
    weights = load_file(folder / "model.safetensors")
    kept = {name: value for name, value in weights.items() if "pooler" not in name}
    assert len(kept) < len(weights)
    save_file(kept, folder / "model.safetensors")
    ADAPTERS["encoder-linear"](str(folder), source, LOADING)


def test_a_pickle_is_read_only_when_asked_for(shop: Path, source: TextSource, tmp_path: Path) -> None:
    folder = copied(shop, "llama", tmp_path)
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    assert "--allow_pickle" in refusal("causal-lm", folder, source)
    ours, _ = load_causal_lm(str(folder), source, replace(LOADING, allow_pickle=True))
    theirs, _ = load_causal_lm(str(shop / "llama"), source, LOADING)
    assert torch.equal(ours.z, theirs.z)
    (folder / "pytorch_model.bin").unlink()
    assert "holds no weights" in refusal("causal-lm", folder, source)


def test_code_of_a_model_is_run_only_when_it_is_trusted(shop: Path, source: TextSource, tmp_path: Path) -> None:
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
    change_config(folder, model_type="mine", auto_map=auto, architectures=["Mine"])
    assert "brings code of its own: pass --trust_remote_code" in refusal("causal-lm", folder, source)
    assert not mark.exists()
    ours, _ = load_causal_lm(str(folder), source, replace(LOADING, trust_remote_code=True))
    assert mark.exists()
    assert torch.equal(ours.z, load_causal_lm(str(shop / "gpt2"), source, LOADING)[0].z)


def test_the_memory_that_weights_need_is_counted_from_their_headers(
    shop: Path, source: TextSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = copied(shop, "llama", tmp_path)
    numbers = sum(value.numel() for value in load_file(folder / "model.safetensors").values())
    assert bytes_needed(folder, torch.float32) == 4 * numbers
    assert bytes_needed(folder, torch.bfloat16) == 2 * numbers
    header = json.dumps({"w": {"dtype": "BF16", "shape": [2**20, 2**24], "data_offsets": [0, 2**45]}}).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
    monkeypatch.setattr(room, "available_bytes", lambda device: 3 * 2**30)
    message = refusal("causal-lm", folder, source)
    assert "needs 65536.0 GiB for its weights in float32, and cpu has 3.0 GiB free" in message
    assert "needs 32768.0 GiB" in refusal("causal-lm", folder, source, replace(LOADING, dtype="bfloat16"))
    (folder / "model.safetensors").write_bytes(b"no header")
    assert "cannot be read as safetensors" in refusal("causal-lm", folder, source)


def test_an_index_says_which_files_count_and_one_that_is_missing_is_told(shop: Path, tmp_path: Path) -> None:
    folder = copied(shop, "llama", tmp_path)
    whole = bytes_needed(folder, torch.float32)
    (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
    save_file({"other": torch.zeros(9)}, folder / "stray.safetensors")
    index = {"weight_map": {"a": "model-00001-of-00001.safetensors", "b": "model-00001-of-00001.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert bytes_needed(folder, torch.float32) == whole
    (folder / "model-00001-of-00001.safetensors").unlink()
    with pytest.raises(UserError, match="lacks 1 of its weight files, first model-00001-of-00001"):
        bytes_needed(folder, torch.float32)


def test_free_memory_is_that_of_the_machine() -> None:
    assert 2**27 < room.available_bytes("cpu") < 2**50


def test_a_tokenizer_of_another_model_and_a_text_in_another_script_are_told(
    shop: Path, source: TextSource, tmp_path: Path
) -> None:
    folder = copied(shop, "encoder", tmp_path)
    for file in folder.glob("tokenizer*"):
        file.unlink()
    for file in (shop / "gpt2").glob("tokenizer*"):
        shutil.copy(file, folder)
    message = refusal("encoder-linear", folder, source)
    assert "give a folder in which tokenizer and model belong together" in message
    assert not word_tokenizer().eos_token  # the other refusal is about what a word piece tokenizer lacks
    greek = tmp_path / "greek.txt"
    greek.write_text("\n\n".join(f"ωμέγα άλφα {letter} βήτα γάμμα δέλτα έψιλον ζήτα " * 20 for letter in "αβγδε"))
    message = refusal("masked-lm", shop / "bert", replace(source, source=str(greek)))
    assert "the tokenizer does not know 99.9% of the text" in message


def test_blocks_that_the_model_or_the_text_cannot_give_are_told(shop: Path, source: TextSource) -> None:
    assert "longer than the 32 positions" in refusal("masked-lm", shop / "bert", replace(source, tokens=31))
    message = refusal("causal-lm", shop / "gpt2", replace(source, examples=10_000))
    assert message.startswith("examples is 10000: expected a number from 2 to ")
    with pytest.raises(UserError, match="1 examples of 8 tokens: expected at least 2"):
        replace(source, examples=1)
    with pytest.raises(UserError, match="dtype is 'int8'"):
        Loading(dtype="int8")


def test_a_saved_readout_is_used_and_one_that_does_not_fit_is_told(
    shop: Path, source: TextSource, tmp_path: Path
) -> None:
    def load(tensors: dict[str, torch.Tensor]) -> Any:
        save_file(tensors, tmp_path / "linear.safetensors")
        choice = ReadoutChoice(file=tmp_path / "linear.safetensors")
        return load_encoder_linear(str(shop / "encoder"), source, LOADING, choice)[0]

    weight, bias = torch.randn(130, WIDTH, generator=torch.Generator().manual_seed(0)), torch.arange(130.0)
    for tensors, added in (({"weight": weight, "bias": bias}, bias), ({"weight": weight}, 0 * bias)):
        decoder = load(tensors)
        torch.testing.assert_close(decoder.decode(decoder.z), decoder.z @ weight.T + added)
    for wrong in (
        {"weight": weight[:, 1:].contiguous()},
        {"weight": weight[:3].contiguous()},
        {"bias": bias},
        {"weight": weight, "scale": bias},
    ):
        with pytest.raises(UserError, match=f"expected weight of shape \\(V, {WIDTH}\\)"):
            load(wrong)
    with pytest.raises(UserError, match=r"bias of shape \(5,\): expected \(130,\)"):
        load({"weight": weight, "bias": bias[:5].contiguous()})
    (tmp_path / "linear.safetensors").write_text("nothing")
    with pytest.raises(UserError, match="cannot be read as safetensors"):
        load_encoder_linear(str(shop / "encoder"), source, LOADING, ReadoutChoice(file=tmp_path / "linear.safetensors"))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("mine", "expected module:function"),
        (":function", "expected module:function"),
        ("no_such_module_here:function", "no module no_such_module_here in"),
        ("mine_module:other", "mine_module has no function other"),
        ("mine_module:number", "mine_module has no function number"),
        ("mine_module:wrong", "gives a int: expected a fewstep.lab.adapters.TextDecoder or ImageDecoder"),
        ("mine_module:fails", "fails (ZeroDivisionError: division by zero)"),
        ("broken_module:fails", "broken_module fails (SyntaxError: "),
        ("mine_module:odd", "decoder odd has latents of shape (2, 3) and tokens of shape (3, 1)"),
    ],
)
def test_a_callable_that_gives_no_decoder_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken_module.py").write_text("def fails(:\n")
    (tmp_path / "mine_module.py").write_text(
        "import torch\nfrom fewstep.lab.adapters import TextDecoder\nnumber = 1\n"
        "def wrong():\n    return 1\n"
        "def fails():\n    return 1 / 0\n"
        "def odd():\n    return TextDecoder('odd', lambda z: z, torch.ones(2, 3), torch.zeros(3, 1).long())\n"
    )
    with pytest.raises(UserError, match=r"^[^\n]*$") as caught:
        load_callable(name)
    assert message in str(caught.value)
