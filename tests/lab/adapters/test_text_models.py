"""What an adapter decodes is what the model itself says: logits against the whole model's, draw against reading."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    PreTrainedTokenizerFast,
)

from fewstep.data import load_tokenizer
from fewstep.diagnostics.response import CATEGORICAL
from fewstep.lab.adapters import encoder_linear
from fewstep.lab.adapters.encoder_linear import load_encoder_linear
from fewstep.lab.adapters.language_models import load_causal_lm, load_masked_lm
from fewstep.lab.adapters.seq2seq import load_seq2seq
from fewstep.lab.adapters.text import load_text_model, special_tokens
from tests.lab.adapters.folders import TOKENS, options_of


def reference(auto: Any, folder: Path) -> Any:
    return auto.from_pretrained(folder).eval()


def framed(folder: Path, ids: Tensor) -> Tensor:
    before, after = special_tokens(load_tokenizer(folder))
    return torch.tensor([[*before, *row, *after] for row in ids.tolist()])


def check_smooth(decode: Any, z: Tensor) -> None:
    """Forward mode agrees with differences of the decoder itself: nothing inside cuts the derivative."""
    noise = torch.randn(z.shape, generator=torch.Generator().manual_seed(0))
    u = noise / noise.flatten(1).norm(dim=1).reshape(-1, 1, 1)
    response, radius = CATEGORICAL, 0.02
    local = response.local(decode, z, u)
    finite = 2 * response.finite(decode, z, u, radius) / radius**2
    torch.testing.assert_close(finite, local, rtol=0.05, atol=1e-6)
    assert bool((local > 0).all())


@pytest.mark.parametrize("kind", ["gpt2", "llama", "gemma2"])
@torch.no_grad()
def test_a_causal_decoder_gives_the_models_own_logits_for_the_next_token(shop: Path, kind: str) -> None:
    decoder = load_causal_lm(options_of(shop, kind))
    blocks = load_text_model(options_of(shop, kind), AutoModelForCausalLM, "a model", more_tokens=1).blocks
    assert torch.equal(decoder.data, blocks[:, 1:])
    assert decoder.data.shape == (3, TOKENS)
    model = reference(AutoModelForCausalLM, shop / kind)
    logits = model(blocks[:, :-1]).logits
    torch.testing.assert_close(decoder.decode(decoder.z), logits, rtol=1e-4, atol=1e-4)
    if kind == "gemma2":
        assert float(logits.abs().max()) <= 0.5 < float(model.lm_head(decoder.z).abs().max())
    check_smooth(decoder.decode, decoder.z)


@torch.no_grad()
def test_a_masked_decoder_gives_the_models_own_logits_between_its_special_tokens(shop: Path) -> None:
    decoder = load_masked_lm(options_of(shop, "bert"))
    whole = framed(shop / "bert", decoder.data)
    assert whole[:, 0].tolist() == [2] * 3 and whole[:, -1].tolist() == [3] * 3
    logits = reference(AutoModelForMaskedLM, shop / "bert")(whole).logits
    torch.testing.assert_close(decoder.decode(decoder.z), logits[:, 1:-1], rtol=1e-4, atol=1e-4)
    assert decoder.conditionals is None
    check_smooth(decoder.decode, decoder.z)


@pytest.mark.parametrize("kind", ["t5", "bart"])
@torch.no_grad()
def test_the_conditionals_of_an_encoder_decoder_are_its_logits_with_the_text_as_labels(shop: Path, kind: str) -> None:
    decoder = load_seq2seq(options_of(shop, kind))
    whole = framed(shop / kind, decoder.data)
    model = reference(AutoModelForSeq2SeqLM, shop / kind)
    first = int(kind == "bart")
    expected = model(input_ids=whole, labels=whole).logits[:, first : first + TOKENS]
    assert decoder.conditionals is not None
    torch.testing.assert_close(decoder.conditionals.logits(decoder.z, decoder.data), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(decoder.z, model.get_encoder()(whole).last_hidden_state, rtol=1e-4, atol=1e-4)
    start = torch.full((3, first + TOKENS), model.config.decoder_start_token_id)
    parallel = model(input_ids=whole, decoder_input_ids=start).logits[:, first:]
    torch.testing.assert_close(decoder.decode(decoder.z), parallel, rtol=1e-4, atol=1e-4)
    check_smooth(decoder.decode, decoder.z)


@pytest.mark.parametrize("kind", ["t5", "bart"])
@torch.no_grad()
def test_an_encoder_decoder_draws_from_the_conditionals_that_it_reports(shop: Path, kind: str) -> None:
    decoder = load_seq2seq(options_of(shop, kind))
    conditionals = decoder.conditionals
    assert conditionals is not None
    z = decoder.z[:1].expand(2000, *decoder.z.shape[1:]) * 1.0
    ids = conditionals.draw(z, torch.Generator().manual_seed(0))
    p = conditionals.logits(z, ids).softmax(-1).gather(-1, ids[..., None])[..., 0]
    expected = conditionals.logits(z, ids).softmax(-1).square().sum(-1)  # E p(x) for x drawn from p
    torch.testing.assert_close(p.mean(0), expected.mean(0), rtol=0.25, atol=0.01)
    again = conditionals.draw(z[:5], torch.Generator().manual_seed(0))
    assert torch.equal(again, conditionals.draw(z[:5], torch.Generator().manual_seed(0)))
    assert not torch.equal(again, conditionals.draw(z[:5], torch.Generator().manual_seed(1)))


@torch.no_grad()
def test_an_encoder_is_read_by_its_own_states_and_embeddings(shop: Path) -> None:
    decoder = load_encoder_linear(options_of(shop, "encoder", readout="tied"))
    model = reference(AutoModel, shop / "encoder")
    states = model(framed(shop / "encoder", decoder.data)).last_hidden_state[:, 1:-1]
    torch.testing.assert_close(decoder.z, states, rtol=1e-4, atol=1e-4)
    expected = states @ model.get_input_embeddings().weight.T
    torch.testing.assert_close(decoder.decode(decoder.z), expected, rtol=1e-4, atol=1e-4)


def accuracy(decoder: Any) -> float:
    return float((decoder.decode(decoder.z).argmax(-1) == decoder.data).double().mean())


@pytest.mark.parametrize("kind", ["encoder", "t5"])
def test_a_fitted_readout_reads_held_out_tokens_better_than_a_tied_one_and_its_seed_decides_it(
    shop: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encoder_linear, "FIT_STEPS", 300)

    def load(readout: str, seed: int = 0) -> Any:
        return load_encoder_linear(options_of(shop, kind, readout=readout, seed=seed))

    tied, fitted, again, other = load("tied"), load("fitted"), load("fitted"), load("fitted", seed=1)
    assert accuracy(fitted) > max(0.5, accuracy(tied))
    assert torch.equal(again.decode(again.z), fitted.decode(fitted.z))
    assert not torch.equal(other.decode(other.z), fitted.decode(fitted.z))
    assert "in 300 steps" in fitted.notes[0]


def test_a_block_is_what_the_tokenizer_makes_of_the_text(shop: Path) -> None:
    decoder = load_causal_lm(options_of(shop, "llama"))
    tokenizer: PreTrainedTokenizerFast = load_tokenizer(shop / "llama")
    whole = (shop / "text.jsonl").read_text()
    for row in decoder.data.tolist():
        assert tokenizer.decode(row).replace("</s>", "").strip() in whole
    assert decoder.source["source"] == str(shop / "text.jsonl")
    assert load_causal_lm(options_of(shop, "llama", tokens=4)).data.shape == (3, 4)
