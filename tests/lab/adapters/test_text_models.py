"""What an adapter decodes is what the model itself says: logits against the whole model's, draw against reading."""

from dataclasses import replace
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
from fewstep.diagnostics.cci import cci
from fewstep.diagnostics.response import CATEGORICAL
from fewstep.lab.adapters import (
    Loading,
    ReadoutChoice,
    TextSource,
    load_causal_lm,
    load_encoder_linear,
    load_masked_lm,
    load_seq2seq,
)
from fewstep.lab.adapters.text import special_tokens
from tests.diagnostics.decoders import ParallelConditionals
from tests.lab.adapters.folders import TOKENS

LOADING = Loading()


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
def test_a_causal_decoder_gives_the_models_own_logits_for_the_next_token(
    shop: Path, source: TextSource, kind: str
) -> None:
    decoder, text = load_causal_lm(str(shop / kind), source, LOADING)
    inputs = text.blocks[:, :-1]
    assert torch.equal(decoder.ids, text.blocks[:, 1:])
    assert decoder.ids.shape == (3, TOKENS)
    model = reference(AutoModelForCausalLM, shop / kind)
    logits = model(inputs).logits
    torch.testing.assert_close(decoder.decode(decoder.z), logits, rtol=1e-4, atol=1e-4)
    if kind == "gemma2":
        assert float(logits.abs().max()) <= 0.5 < float(model.lm_head(decoder.z).abs().max())
    check_smooth(decoder.decode, decoder.z)


@torch.no_grad()
def test_a_masked_decoder_gives_the_models_own_logits_between_its_special_tokens(
    shop: Path, source: TextSource
) -> None:
    decoder, _ = load_masked_lm(str(shop / "bert"), source, LOADING)
    whole = framed(shop / "bert", decoder.ids)
    assert whole[:, 0].tolist() == [2] * 3 and whole[:, -1].tolist() == [3] * 3
    logits = reference(AutoModelForMaskedLM, shop / "bert")(whole).logits
    torch.testing.assert_close(decoder.decode(decoder.z), logits[:, 1:-1], rtol=1e-4, atol=1e-4)
    assert decoder.conditionals is None
    check_smooth(decoder.decode, decoder.z)


@pytest.mark.parametrize("kind", ["t5", "bart"])
@torch.no_grad()
def test_the_conditionals_of_an_encoder_decoder_are_its_logits_with_the_text_as_labels(
    shop: Path, source: TextSource, kind: str
) -> None:
    decoder, _ = load_seq2seq(str(shop / kind), source, LOADING)
    whole = framed(shop / kind, decoder.ids)
    model = reference(AutoModelForSeq2SeqLM, shop / kind)
    first = int(kind == "bart")
    expected = model(input_ids=whole, labels=whole).logits[:, first : first + TOKENS]
    assert decoder.conditionals is not None
    torch.testing.assert_close(decoder.conditionals.logits(decoder.z, decoder.ids), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(decoder.z, model.get_encoder()(whole).last_hidden_state, rtol=1e-4, atol=1e-4)
    start = torch.full((3, first + TOKENS), model.config.decoder_start_token_id)
    parallel = model(input_ids=whole, decoder_input_ids=start).logits[:, first:]
    torch.testing.assert_close(decoder.decode(decoder.z), parallel, rtol=1e-4, atol=1e-4)
    check_smooth(decoder.decode, decoder.z)


@pytest.mark.parametrize("kind", ["t5", "bart"])
@torch.no_grad()
def test_an_encoder_decoder_draws_from_the_conditionals_that_it_reports(
    shop: Path, source: TextSource, kind: str
) -> None:
    decoder, _ = load_seq2seq(str(shop / kind), source, LOADING)
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


def test_the_parallel_readout_of_an_encoder_decoder_commits_to_nothing(shop: Path, source: TextSource) -> None:
    decoder, _ = load_seq2seq(str(shop / "t5"), source, LOADING)
    found = cci(ParallelConditionals(decoder.decode), decoder.z, generator=torch.Generator().manual_seed(0))
    assert found["cci"].value == 0
    assert found["cci_marginal_nats"].value is not None and found["cci_marginal_nats"].value > 0.1


@torch.no_grad()
def test_an_encoder_is_read_by_its_own_states_and_embeddings(shop: Path, source: TextSource) -> None:
    decoder, _ = load_encoder_linear(str(shop / "encoder"), source, LOADING, ReadoutChoice("tied"))
    model = reference(AutoModel, shop / "encoder")
    states = model(framed(shop / "encoder", decoder.ids)).last_hidden_state[:, 1:-1]
    torch.testing.assert_close(decoder.z, states, rtol=1e-4, atol=1e-4)
    expected = states @ model.get_input_embeddings().weight.T
    torch.testing.assert_close(decoder.decode(decoder.z), expected, rtol=1e-4, atol=1e-4)


def accuracy(decoder: Any) -> float:
    return float((decoder.decode(decoder.z).argmax(-1) == decoder.ids).double().mean())


@pytest.mark.parametrize("kind", ["encoder", "t5"])
def test_a_fitted_readout_reads_held_out_tokens_better_than_a_tied_one_and_its_seed_decides_it(
    shop: Path, source: TextSource, kind: str
) -> None:
    def load(choice: ReadoutChoice) -> Any:
        return load_encoder_linear(str(shop / kind), source, LOADING, choice)[0]

    tied, fitted = load(ReadoutChoice("tied")), load(ReadoutChoice(num_steps=300))
    assert accuracy(fitted) > max(0.5, accuracy(tied))
    again, other = load(ReadoutChoice(num_steps=300)), load(ReadoutChoice(num_steps=300, seed=1))
    assert torch.equal(again.decode(again.z), fitted.decode(fitted.z))
    assert not torch.equal(other.decode(other.z), fitted.decode(fitted.z))
    assert "in 300 steps" in fitted.notes[0]


def test_a_block_is_what_the_tokenizer_makes_of_the_text_and_others_text_gives_other_blocks(
    shop: Path, source: TextSource
) -> None:
    _, text = load_causal_lm(str(shop / "llama"), source, LOADING)
    tokenizer: PreTrainedTokenizerFast = load_tokenizer(shop / "llama")
    whole = (shop / "text.jsonl").read_text()
    for row in text.blocks.tolist():
        assert tokenizer.decode(row).replace("</s>", "").strip() in whole
    assert text.data == {"source": str(shop / "text.jsonl"), "fingerprint": text.corpus.fingerprint}
    fewer, _ = load_causal_lm(str(shop / "llama"), replace(source, tokens=4), LOADING)
    assert fewer.ids.shape == (3, 4)
