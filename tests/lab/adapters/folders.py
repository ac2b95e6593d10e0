"""Tiny models of transformers and diffusers on disk, with a tokenizer trained on the tests' lines."""

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
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

from fewstep.cli.diagnose import DiagnoseOptions
from fewstep.data import train_tokenizer
from tests.runs import WORDS

TOKENS = 8

LINES = [" ".join(WORDS), "Text number 1. 2. 3. 4. 5. 6. 7. 8. 9. 0."]
WIDTH = 16


def options_of(shop: Path, kind: str | Path, **changes: object) -> DiagnoseOptions:
    """Three examples of a model of the shop, or in another folder."""
    model = str(shop / kind)  # an absolute path stays what it is
    values: dict[str, Any] = {"text": str(shop / "text.jsonl"), "tokens": TOKENS, "examples": 3}
    return DiagnoseOptions(**{**values, "model": model, "cache_dir": str(shop / "cache"), "device": "cpu", **changes})


def word_tokenizer() -> PreTrainedTokenizerFast:
    """BERT's kind: word pieces between [CLS] and [SEP], without an end of text."""
    backend = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer()
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    backend.train_from_iterator(
        LINES, trainers.WordPieceTrainer(vocab_size=120, special_tokens=special, show_progress=False)
    )
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
    )


def byte_tokenizer(before: bool, after: bool) -> PreTrainedTokenizerFast:
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


def causal_model(kind: str, size: int) -> Any:
    """GPT-2 (tied head), Llama (a head of its own) or Gemma 2 (logits capped)."""
    if kind == "gpt2":
        return built(GPT2LMHeadModel, GPT2Config(vocab_size=size, n_positions=64, n_embd=WIDTH, n_layer=2, n_head=2))
    shared: dict[str, Any] = {
        "vocab_size": size,
        "hidden_size": WIDTH,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 64,
        "pad_token_id": None,
    }
    if kind == "llama":
        return built(LlamaForCausalLM, LlamaConfig(tie_word_embeddings=False, **shared))
    return built(Gemma2ForCausalLM, Gemma2Config(head_dim=8, final_logit_softcapping=0.5, **shared))


def bert_config(size: int) -> BertConfig:
    return BertConfig(
        vocab_size=size,
        hidden_size=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        max_position_embeddings=32,
    )


def write(folder: Path, kind: str) -> Path:
    """A folder with model and tokenizer: gpt2, llama, gemma2, bert (its head), encoder, t5 or bart."""
    if kind in ("bert", "encoder"):
        tokenizer = word_tokenizer()
        model = built(BertForMaskedLM if kind == "bert" else BertModel, bert_config(len(tokenizer)))
    elif kind == "t5":
        tokenizer = byte_tokenizer(False, True)
        config = T5Config(
            vocab_size=len(tokenizer),
            d_model=WIDTH,
            d_kv=8,
            d_ff=24,
            num_layers=2,
            num_heads=2,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
            decoder_start_token_id=tokenizer.pad_token_id,
        )
        model = built(T5ForConditionalGeneration, config, scale=1.0)
    elif kind == "bart":
        tokenizer = byte_tokenizer(True, True)
        config = BartConfig(
            vocab_size=len(tokenizer),
            d_model=WIDTH,
            encoder_layers=1,
            decoder_layers=1,
            encoder_attention_heads=2,
            decoder_attention_heads=2,
            encoder_ffn_dim=24,
            decoder_ffn_dim=24,
            max_position_embeddings=64,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            decoder_start_token_id=tokenizer.eos_token_id,
            forced_eos_token_id=None,
        )
        model = built(BartForConditionalGeneration, config)
    else:
        tokenizer = byte_tokenizer(False, False)
        model = causal_model(kind, len(tokenizer))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
