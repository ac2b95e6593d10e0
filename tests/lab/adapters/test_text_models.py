"""What an adapter decodes is what the model itself says: logits against the whole model's, draw against reading."""

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from torch import Tensor
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForMaskedLM, AutoModelForSeq2SeqLM

from fewstep.data.tokenizer import load_tokenizer
from fewstep.lab.adapters import language_models
from fewstep.lab.adapters.text import blocks_of, load_text_model, special_tokens
from tests.lab.adapters.folders import TOKENS, check_smooth, load, options_of


def reference(auto: Any, folder: Path) -> Any:
    return auto.from_pretrained(folder).eval()


def framed(folder: Path, ids: Tensor) -> Tensor:
    before, after = special_tokens(load_tokenizer(folder))
    return torch.tensor([[*before, *row, *after] for row in ids.tolist()])


def close(ours: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)


def test_a_padded_block_is_not_measured() -> None:
    rows = [{"index": i, "input_ids": [i, 1, 2], "length": 3 - i // 3, "num_bytes": i} for i in range(4)]
    split = Dataset.from_list(rows).with_format("numpy")
    assert [blocks_of(split, count)[:, 0].tolist() for count in (2, 3, 4)] == [[0, 1], [0, 1, 2], [0, 1, 2]]


@pytest.mark.parametrize("kind", ["gpt2", "llama", "gemma2"])
@torch.no_grad()
def test_a_causal_decoder_gives_the_models_own_logits_for_the_next_token(shop: Path, kind: str) -> None:
    decoder = load("causal-lm", options_of(shop, kind))
    blocks = load_text_model(options_of(shop, kind), AutoModelForCausalLM, "a model", more_tokens=1).blocks
    assert torch.equal(decoder.data, blocks[:, 1:])
    assert decoder.data.shape == (3, TOKENS)
    model = reference(AutoModelForCausalLM, shop / kind)
    logits = model(blocks[:, :-1]).logits
    close(decoder.decode(decoder.z), logits)
    if kind == "gemma2":
        assert float(logits.abs().max()) <= 0.5 < float(model.lm_head(decoder.z).abs().max())
    check_smooth(decoder.decode, decoder.z)
    tokenizer, whole = load_tokenizer(shop / kind), (shop / "text.jsonl").read_text()
    for row in decoder.data.tolist():
        assert tokenizer.decode(row).replace("</s>", "").strip() in whole


@torch.no_grad()
def test_a_masked_decoder_gives_the_models_own_logits_between_its_special_tokens(shop: Path) -> None:
    decoder = load("masked-lm", options_of(shop, "bert"))
    whole = framed(shop / "bert", decoder.data)
    assert whole.shape == (3, 1 + TOKENS + 1)
    close(decoder.decode(decoder.z), reference(AutoModelForMaskedLM, shop / "bert")(whole).logits[:, 1:-1])
    assert decoder.conditionals is None
    check_smooth(decoder.decode, decoder.z)


@pytest.mark.parametrize("kind", ["t5", "bart"])
@torch.no_grad()
def test_an_encoder_decoder_is_read_in_parallel_and_draws_from_the_conditionals_that_it_reports(
    shop: Path, kind: str
) -> None:
    decoder = load("seq2seq", options_of(shop, kind))
    whole, first = framed(shop / kind, decoder.data), int(kind == "bart")
    model, conditionals = reference(AutoModelForSeq2SeqLM, shop / kind), decoder.conditionals
    assert conditionals is not None
    close(decoder.z, model.get_encoder()(whole).last_hidden_state)
    own = model(input_ids=whole, labels=whole).logits[:, first : first + TOKENS]
    close(conditionals.logits(decoder.z, decoder.data), own)
    start = torch.full((3, first + TOKENS), model.config.decoder_start_token_id)
    close(decoder.decode(decoder.z), model(input_ids=whole, decoder_input_ids=start).logits[:, first:])
    check_smooth(decoder.decode, decoder.z)
    z = decoder.z[:1].expand(2000, *decoder.z.shape[1:]) * 1.0
    ids = conditionals.draw(z, torch.Generator().manual_seed(0))
    p = conditionals.logits(z, ids).softmax(-1)
    drawn, expected = p.gather(-1, ids[..., None])[..., 0], p.square().sum(-1)  # E p(x) for x drawn from p
    torch.testing.assert_close(drawn.mean(0), expected.mean(0), rtol=0.25, atol=0.01)
    again, same, other = (conditionals.draw(z[:5], torch.Generator().manual_seed(seed)) for seed in (0, 0, 1))
    assert torch.equal(again, same) and not torch.equal(again, other)


@torch.no_grad()
def test_an_encoder_is_read_by_its_own_states_and_embeddings(shop: Path) -> None:
    decoder = load("encoder-linear", options_of(shop, "encoder", readout="tied"))
    model = reference(AutoModel, shop / "encoder")
    close(decoder.z, model(framed(shop / "encoder", decoder.data)).last_hidden_state[:, 1:-1])
    close(decoder.decode(decoder.z), decoder.z @ model.get_input_embeddings().weight.T)


@pytest.mark.parametrize("kind", ["encoder", "t5"])
def test_a_fitted_readout_reads_held_out_tokens_better_than_a_tied_one_and_its_seed_decides_it(
    shop: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(language_models, "FIT_STEPS", 300)

    def logits_of(readout: str, seed: int = 0) -> tuple[Tensor, float]:
        decoder = load("encoder-linear", options_of(shop, kind, readout=readout, seed=seed))
        assert ("in 300 steps" in decoder.notes[0]) == (readout == "fitted")
        logits = decoder.decode(decoder.z)
        return logits, float((logits.argmax(-1) == decoder.data).double().mean())

    (fitted, accuracy), (_, tied) = logits_of("fitted"), logits_of("tied")
    assert accuracy > max(0.5, tied)
    assert torch.equal(logits_of("fitted")[0], fitted)
    assert not torch.equal(logits_of("fitted", seed=1)[0], fitted)
