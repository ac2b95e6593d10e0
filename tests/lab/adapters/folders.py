"""Tiny models of transformers on disk, with a tokenizer trained on the tests' lines, and what loads them."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import processors
from torch import Tensor
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertForMaskedLM,
    BertModel,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

from fewstep.cli.diagnose import ADAPTERS, DiagnoseOptions
from fewstep.data.tokenizer import train_tokenizer
from fewstep.diagnostics.response import CATEGORICAL
from fewstep.errors import UserError
from fewstep.lab.adapters import Decoder
from fewstep.registry import import_attribute
from tests.runs import WORDS

TOKENS = 8
LINES = [" ".join(WORDS), "Text number 1. 2. 3. 4. 5. 6. 7. 8. 9. 0."]
WIDTH = 16


def options_of(shop: Path, kind: str | Path, **changes: object) -> DiagnoseOptions:
    """Three examples of a model of the shop, or in another folder."""
    model = str(shop / kind)  # an absolute path stays what it is
    values: dict[str, Any] = {"text": str(shop / "text.jsonl"), "tokens": TOKENS, "examples": 3}
    return DiagnoseOptions(**{**values, "model": model, "cache_dir": str(shop / "cache"), "device": "cpu", **changes})


def load(adapter: str, options: DiagnoseOptions) -> Decoder:
    """What the command loads."""
    return import_attribute(ADAPTERS[adapter][0], "adapter")(options)


def refusal(adapter: str, options: DiagnoseOptions) -> str:
    """The one line of a decoder that is not loaded."""
    with pytest.raises(UserError, match=r"^[^\n]*$") as caught:
        load(adapter, options)
    return str(caught.value)


def check_smooth(decode: Any, z: Tensor) -> None:
    """Forward mode agrees with differences of the decoder itself: nothing inside cuts the derivative."""
    noise = torch.randn(z.shape, generator=torch.Generator().manual_seed(0))
    u = noise / noise.flatten(1).norm(dim=1).reshape(-1, 1, 1)
    local, radius = CATEGORICAL.local(decode, z, u), 0.02
    torch.testing.assert_close(2 * CATEGORICAL.finite(decode, z, u, radius) / radius**2, local, rtol=0.05, atol=1e-6)
    assert bool((local > 0).all())


def byte_tokenizer(before: bool = False, after: bool = False) -> PreTrainedTokenizerFast:
    """Bytes, with <s> before and </s> after a text where asked for."""
    made = train_tokenizer(LINES * 5, 280)
    made.add_special_tokens({"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"})
    template = " ".join([*(["<s>"] if before else []), "$A", *(["</s>"] if after else [])])
    pairs = [("<s>", made.bos_token_id), ("</s>", made.eos_token_id)]
    made.backend_tokenizer.post_processor = processors.TemplateProcessing(single=template, special_tokens=pairs)
    return PreTrainedTokenizerFast(
        tokenizer_object=made.backend_tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )


def built(cls: Any, config: Any, *, scale: float = 4.0) -> Any:
    """A model of random weights, matrices ``scale`` times as large as usual so that its tokens differ."""
    with torch.random.fork_rng():  # constructors draw from the global generator
        torch.manual_seed(0)
        model = cls(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(scale)
    return model.eval()


SIZES: dict[str, Any] = {
    "hidden_size": WIDTH,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
LLAMA = {**SIZES, "num_key_value_heads": 1, "max_position_embeddings": 64, "pad_token_id": None}
BERT = {**SIZES, "max_position_embeddings": 32}
BART = {f"{part}_{name}": n for part in ("encoder", "decoder") for name, n in (("layers", 1), ("attention_heads", 2))}
BART |= {"d_model": WIDTH, "encoder_ffn_dim": 24, "decoder_ffn_dim": 24, "max_position_embeddings": 64}
KINDS: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "gpt2": (GPT2LMHeadModel, GPT2Config, {"n_positions": 64, "n_embd": WIDTH, "n_layer": 2, "n_head": 2}),
    "llama": (LlamaForCausalLM, LlamaConfig, {**LLAMA, "tie_word_embeddings": False}),
    "gemma2": (Gemma2ForCausalLM, Gemma2Config, {**LLAMA, "head_dim": 8, "final_logit_softcapping": 0.5}),
    "bert": (BertForMaskedLM, BertConfig, BERT),
    "encoder": (BertModel, BertConfig, BERT),
    "t5": (
        T5ForConditionalGeneration,
        T5Config,
        {"d_model": WIDTH, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2},
    ),
    "bart": (BartForConditionalGeneration, BartConfig, {**BART, "forced_eos_token_id": None}),
}
"""Class, config and sizes: GPT-2 has a tied head, Llama its own, and Gemma's logits are capped."""


def write(folder: Path, kind: str) -> Path:
    """A folder with a model of :data:`KINDS` and its tokenizer."""
    is_pair = kind in ("t5", "bart")
    tokenizer = byte_tokenizer(kind in ("bart", "bert", "encoder"), kind in ("t5", "bart", "bert", "encoder"))
    cls, config, sizes = KINDS[kind]
    special = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("pad", "bos", "eos")}
    special["decoder_start_token_id"] = tokenizer.pad_token_id if kind == "t5" else tokenizer.eos_token_id
    made = config(vocab_size=len(tokenizer), **sizes, **(special if is_pair else {}))
    built(cls, made, scale=1.0 if kind == "t5" else 4.0).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
