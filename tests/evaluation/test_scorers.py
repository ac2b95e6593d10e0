"""Scorers against independent computations; tiny models of transformers with a tokenizer trained here."""

import shutil
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from fewstep.data.tokenizer import train_tokenizer
from fewstep.errors import UserError
from fewstep.evaluation.scorers import RunScorer, ScoredText, Scorer, corpus_perplexity, weights_digest
from fewstep.evaluation.transformers_scorer import TransformersScorer
from fewstep.metrics.text import sample_entropies_nats
from tests.bundles import LINES, randomise, tiny_bundle, tokenizer

NO_IDS, NO_MASK = torch.zeros(0, 1, dtype=torch.long), torch.zeros(0, 1, dtype=torch.bool)
TEXTS = ["the old ship sailed past", "café", "", "nobody knew how far the lights would be from here, nobody", "s"]
POSITIONS = 64
END = "<|endoftext|>"


def perplexity(scored: ScoredText) -> float:
    return float(corpus_perplexity(torch.stack([scored.nats, scored.tokens], 1)))


def tokenizer_with_begin() -> PreTrainedTokenizerFast:
    made = train_tokenizer(LINES * 5, 290)
    made.add_special_tokens({"bos_token": "<s>"})
    return made


def write_scorer(folder: Path, kind: str) -> Path:
    """A folder of a GPT-2 (begin- and end-of-text are one token), or a Llama with or without a begin-of-text."""
    made = tokenizer_with_begin() if kind == "llama" else train_tokenizer(LINES * 5, 290)
    if kind == "gpt2":
        made.bos_token = made.eos_token
    sizes = {"vocab_size": len(made), "bos_token_id": made.bos_token_id, "eos_token_id": made.eos_token_id}
    with torch.random.fork_rng():  # constructors draw from the global generator
        torch.manual_seed(0)
        if kind == "gpt2":
            model = GPT2LMHeadModel(GPT2Config(n_positions=POSITIONS, n_embd=16, n_layer=2, n_head=2, **sizes))
        else:
            heads = {"num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1}
            model = LlamaForCausalLM(
                LlamaConfig(hidden_size=16, intermediate_size=24, max_position_embeddings=POSITIONS, **heads, **sizes)
            )
    randomise(model, torch.Generator().manual_seed(0))
    model.save_pretrained(folder)
    made.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    base = tmp_path_factory.mktemp("scorers")
    return {kind: write_scorer(base / kind, kind) for kind in ("gpt2", "llama", "llama_without_begin")}


def plain_scores(scorer: TransformersScorer, text: str) -> tuple[list[int], np.ndarray]:
    """Scored tokens of one text and their nats: the text alone, no padding, NumPy in float64."""
    ids = scorer.tokenizer(text, add_special_tokens=False)["input_ids"]
    begin = scorer.tokenizer.bos_token_id
    inputs = ids if begin is None else [begin, *ids]
    if len(inputs) < 2:
        return [], np.zeros(0)
    with torch.no_grad():
        logits = scorer.model(torch.tensor([inputs])).logits[0].numpy().astype(np.float64)
    shifted = logits - logits.max(-1, keepdims=True)
    log_probs = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return inputs[1:], -log_probs[np.arange(len(inputs) - 1), inputs[1:]]


@pytest.mark.parametrize("kind", ["gpt2", "llama", "llama_without_begin"])
def test_scores_equal_numpy_in_float64_text_by_text(folders: dict[str, Path], kind: str) -> None:
    scorer = TransformersScorer(folders[kind], batch_size=3)
    scored = scorer.score(TEXTS, NO_IDS, NO_MASK)
    tokens, nats = zip(*(plain_scores(scorer, text) for text in TEXTS), strict=True)
    np.testing.assert_allclose(scored.nats.numpy(), [row.sum() for row in nats], rtol=1e-5)
    assert scored.tokens.tolist() == [len(row) for row in tokens]
    assert {values.dtype for values in (scored.nats, scored.tokens, scored.entropies_nats)} == {torch.float64}
    entropies = [float(sample_entropies_nats(torch.tensor([row], dtype=torch.long))) for row in tokens]
    np.testing.assert_allclose(scored.entropies_nats.numpy(), entropies, rtol=1e-12)
    assert perplexity(scored) == pytest.approx(float(np.exp(np.concatenate(nats).mean())), rel=1e-5)
    assert perplexity(scored) > 2


@pytest.mark.parametrize("kind", ["gpt2", "llama_without_begin"])
def test_of_a_text_that_is_partly_given_the_tokens_with_a_written_character_count(
    folders: dict[str, Path], kind: str
) -> None:
    scorer, text = TransformersScorer(folders[kind]), "the old ship sailed past"
    spans = [(0, len(text)), (8, len(text)), (9, 13), (len(text), len(text))]
    scored = scorer.score([text] * len(spans), NO_IDS, NO_MASK, spans)
    tokens, nats = plain_scores(scorer, text)
    offsets = scorer._backend.encode(text, add_special_tokens=False).offsets[-len(tokens) :]
    for row, (first, behind) in enumerate(spans):
        counted = [start < behind and end > first for start, end in offsets]
        assert scored.tokens[row] == sum(counted)
        assert float(scored.nats[row]) == pytest.approx(float(nats[counted].sum()), rel=1e-5)
    assert 0 < scored.tokens[2] < scored.tokens[1] < scored.tokens[0] and scored.tokens[3] == 0


@pytest.mark.parametrize("kind", ["gpt2", "llama", "llama_without_begin"])
def test_neither_the_batch_nor_padding_nor_the_order_moves_a_score(folders: dict[str, Path], kind: str) -> None:
    one, many = (TransformersScorer(folders[kind], batch_size=size) for size in (1, 5))
    alone = one.score(TEXTS, NO_IDS, NO_MASK)
    together = many.score(TEXTS, NO_IDS, NO_MASK)
    torch.testing.assert_close(alone.nats, together.nats, rtol=1e-5, atol=1e-5)
    backwards = many.score(TEXTS[::-1], NO_IDS, NO_MASK)
    torch.testing.assert_close(alone.nats, backwards.nats.flip(0), rtol=1e-5, atol=1e-5)
    assert torch.equal(alone.tokens, backwards.tokens.flip(0))
    states = [scorer.features(TEXTS, NO_IDS, NO_MASK) for scorer in (one, many)]
    torch.testing.assert_close(*states, rtol=1e-4, atol=1e-5)
    assert (states[0].shape, states[0].dtype) == ((len(TEXTS), 16), torch.float32)


@pytest.mark.parametrize("kind", ["gpt2", "llama", "llama_without_begin"])
def test_features_are_the_last_state_at_the_last_token_and_zero_where_there_is_none(
    folders: dict[str, Path], kind: str
) -> None:
    scorer: Scorer = TransformersScorer(folders[kind])
    features = scorer.features(TEXTS, NO_IDS, NO_MASK)
    for text, found in zip(TEXTS, features, strict=True):
        (row,) = scorer.tokens([text])
        row = row.tolist() if scorer.begin is None else [scorer.begin, *row.tolist()]
        expected = torch.zeros(16)
        if row:
            with torch.no_grad():
                expected = scorer.model(torch.tensor([row]), output_hidden_states=True).hidden_states[-1][0, -1]
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert bool((features == 0).all(-1).any()) == (kind == "llama_without_begin")
    assert not scorer.features(["", ""], NO_IDS, NO_MASK).any() or kind != "llama_without_begin"


def test_long_texts_are_summed_over_all_their_parts(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    scorer = TransformersScorer(folders["gpt2"])
    whole = scorer.score(TEXTS, NO_IDS, NO_MASK)
    monkeypatch.setattr("fewstep.evaluation.transformers_scorer.POSITIONS_AT_ONCE", 3)
    torch.testing.assert_close(scorer.score(TEXTS, NO_IDS, NO_MASK).nats, whole.nats, rtol=1e-12, atol=1e-12)


def test_a_text_counts_to_its_first_end_that_included(folders: dict[str, Path]) -> None:
    scorer = TransformersScorer(folders["gpt2"])
    texts = [f"the old{END}", f"the old{END} ship{END}sailed", f"the old{END}{END}"]
    ended, longer, other = (row.tolist() for row in scorer.tokens(texts))
    assert ended == longer == other
    assert ended[-1] == scorer.tokenizer.eos_token_id and len(ended) > 1
    scored = scorer.score([f"the old{END}", f"the old{END} ship", "the old"], NO_IDS, NO_MASK)
    assert float(scored.nats[0]) == pytest.approx(float(scored.nats[1]), rel=1e-6)
    assert scored.tokens.tolist() == [len(ended), len(ended), len(ended) - 1]


def test_nothing_is_cut_off_a_text_of_all_positions_fits_and_a_longer_one_is_told(folders: dict[str, Path]) -> None:
    for kind, room in (("gpt2", POSITIONS - 1), ("llama", POSITIONS - 1), ("llama_without_begin", POSITIONS)):
        scorer = TransformersScorer(folders[kind])
        scorer.tokenizer.model_max_length = 5  # what the tokenizer would cut to is not asked
        assert scorer.score(["zzz", "z" * room], NO_IDS, NO_MASK).tokens[1] == min(room, POSITIONS - 1)
        with pytest.raises(UserError, match=rf"text 1 has {room + 1} tokens under {kind}, which takes {room}"):
            scorer.score(["zzz", "z" * (room + 1)], NO_IDS, NO_MASK)


def test_the_identity_names_what_moves_the_numbers_and_not_the_place(folders: dict[str, Path], tmp_path: Path) -> None:
    scorer: Scorer = TransformersScorer(folders["llama"])
    moved = Path(shutil.copytree(folders["llama"], tmp_path / "elsewhere"))
    assert TransformersScorer(moved).identity() == scorer.identity()
    assert (scorer.name, TransformersScorer(moved).name) == ("llama", "elsewhere")
    for other in (TransformersScorer(folders["llama"], dtype="bfloat16"), TransformersScorer(folders["gpt2"])):
        assert other.identity() != scorer.identity()
    without = TransformersScorer(folders["llama_without_begin"]).identity()
    assert without["begin_of_text"] == "none: the first token is not scored"
    weights = load_file(moved / "model.safetensors")
    weights["model.norm.weight"][0] += 0.5
    save_file(weights, moved / "model.safetensors", metadata={"format": "pt"})
    assert TransformersScorer(moved).identity()["weights"] != scorer.identity()["weights"]


def test_what_is_no_whole_model_is_told_in_one_line(folders: dict[str, Path], tmp_path: Path) -> None:
    cut = Path(shutil.copytree(folders["gpt2"], tmp_path / "cut"))
    weights = load_file(cut / "model.safetensors")
    weights.pop("transformer.h.1.mlp.c_fc.weight")
    save_file(weights, cut / "model.safetensors", metadata={"format": "pt"})
    empty = Path(shutil.copytree(folders["gpt2"], tmp_path / "empty"))
    (empty / "model.safetensors").unlink()
    larger = Path(shutil.copytree(folders["gpt2"], tmp_path / "larger"))
    train_tokenizer(LINES * 50, 320).save_pretrained(larger)
    for path, message in (
        (cut, "lacks 1 weights of a causal language model, first transformer.h.1.mlp.c_fc.weight"),
        (empty, "cannot be loaded as a causal language model"),
        (tmp_path / "nowhere", "is no folder"),
        ("somebody/no-such-model", "no-such-model' is no local path and the hub did not give it"),
    ):
        with pytest.raises(UserError, match=message):
            TransformersScorer(path)
    with pytest.raises(UserError, match=r"has token \d+ under larger, whose model knows 2\d\d"):
        TransformersScorer(larger).score(LINES, NO_IDS, NO_MASK)


def test_the_runs_scorer_gives_the_nats_of_its_network(generator: torch.Generator) -> None:
    model = tiny_bundle().scorer()
    ids = torch.randint(len(tokenizer()), (7, 8), generator=generator)
    mask = torch.arange(8) < torch.randint(1, 9, (7, 1), generator=generator)
    scorer: Scorer = RunScorer(model, tokenizer(), batch_size=3)
    scored = scorer.score([""] * 7, ids, mask)
    with torch.no_grad():
        log_probs = model.network(model.network.shift_right(ids)).double().log_softmax(-1)
    nats = -log_probs.gather(-1, ids[..., None])[..., 0]
    torch.testing.assert_close(scored.nats, torch.where(mask, nats, 0).sum(-1), rtol=1e-5, atol=1e-5)
    assert torch.equal(scored.tokens, mask.sum(-1).double())
    torch.testing.assert_close(scored.entropies_nats, sample_entropies_nats(ids, mask))
    again, other = (RunScorer(tiny_bundle(seed).scorer(), tokenizer()).identity() for seed in (0, 1))
    assert again == scorer.identity() and other != again


def test_a_weights_digest_sees_every_number_name_and_type() -> None:
    module = torch.nn.Linear(3, 2)
    other = deepcopy(module)
    assert weights_digest(other) == weights_digest(module)
    torch.nn.init.zeros_(other.bias)
    changed = [module, other, torch.nn.Sequential(module), deepcopy(module).double()]
    assert len({weights_digest(each) for each in changed}) == len(changed)
