"""`fewstep evaluate` on a corpus with a known law: exact columns beside those of the scorer."""

import pytest
import torch

from fewstep.autoencoders import TransformerAutoencoder
from fewstep.cli.main import main
from fewstep.data import tokenizer_fingerprint, train_tokenizer
from fewstep.denoisers import RegressionDenoiser
from fewstep.evaluation.grammar import GrammarJudge, block_texts
from fewstep.evaluation.row_file import RowFile
from fewstep.evaluation.sweep_grammar import GrammarReference, grammar_reference
from fewstep.evaluation.sweep_row import SweepRow
from fewstep.lab.theory.grammar import GrammarSentences
from fewstep.model import Identity, SavedModel
from fewstep.readouts import CausalTransformer, TransformerReadout

SOURCE, NUM_WORDS = "grammar:15", 15


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(list(GrammarSentences(NUM_WORDS, count=300).texts()), 600)


@pytest.fixture(scope="module")
def rows(tokenizer, tmp_path_factory) -> dict[str, SweepRow]:
    """What the command leaves for an untrained model, by the names of the texts."""
    folder = tmp_path_factory.mktemp("law")
    sizes = {"width": 16, "depth": 1, "num_heads": 2}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        bundle = SavedModel(
            tokenizer,
            Identity(NUM_WORDS + 1, tokenizer_fingerprint(tokenizer), source=SOURCE),
            autoencoder=TransformerAutoencoder(len(tokenizer), 6, stride=1, **sizes),
            readout=TransformerReadout(len(tokenizer), 6, stride=1, **sizes),
            denoiser=RegressionDenoiser(6, NUM_WORDS + 1, **sizes),
            language_model=CausalTransformer(len(tokenizer), **sizes),
        ).to("cpu")
    bundle.save_pretrained(folder / "model")
    options = ["--steps", "2", "--readout", "parallel", "--samples", "8", "--seeds", "2", "--cci_examples", "0"]
    place = ["--max_documents", "600", "--cache_dir", str(folder / "cache"), "--out", str(folder / "out")]
    assert main(["evaluate", str(folder / "model"), *options, *place, "--device", "cpu"]) == 0
    table = (folder / "out" / "table.md").read_text(encoding="utf-8")
    assert "| valid | of texts | broken | nats / word | branches |" in table
    return {row.setting.name: row for row in RowFile(folder / "out" / "rows.jsonl", SweepRow).read()}


def test_sentences_are_valid_and_nothing_else_is(rows):
    shares = {name: row.grammar.valid.value for name, row in rows.items()}
    assert shares == {
        "held-out text": 1,
        "words shuffled": 0,
        "unigram draws": 0,
        "pure noise": 0,
        "language model": 0,
        "flow": 0,
    }
    assert all(row.grammar.valid.total == 16 and len(row.grammar.valid_by_seed) == 2 for row in rows.values())


def test_the_nats_of_a_row_are_the_laws_own(rows, tokenizer):
    law = GrammarJudge(SOURCE)
    row = rows["held-out text"]
    shown = law.judge([text.strip() for text in row.examples])
    assert bool(shown.valid.all())
    scores = GrammarReference(SOURCE, tokenizer).measures.scores(shown)
    assert scores.nats_per_word == pytest.approx(float(-shown.log_probability.mean()) / NUM_WORDS)
    assert abs(row.grammar.nats_per_word - row.grammar.entropy_per_word) < 0.5


def test_the_column_judges_whole_blocks_up_to_their_padding(tokenizer):
    sentences = list(GrammarSentences(NUM_WORDS, count=3).texts())
    ids = torch.tensor([[*tokenizer(text)["input_ids"], tokenizer.eos_token_id, 5] for text in sentences])
    mask = torch.ones_like(ids, dtype=torch.bool)
    reference = GrammarReference(SOURCE, tokenizer)
    assert reference.scores(ids, mask, [0, 0, 1]).valid.value == 0  # a stray token behind the end
    mask[:2, -1] = False
    scores = reference.scores(ids, mask, [0, 0, 1])
    assert scores.valid_by_seed == (1, 0)
    expected = reference.judge.judge(block_texts(tokenizer, ids[:2, :-1]))
    assert scores.nats_per_word == pytest.approx(float(-expected.log_probability.mean()) / NUM_WORDS)


def test_rows_keep_their_columns_through_json_and_old_rows_have_none(rows):
    row = rows["held-out text"]
    assert SweepRow.from_dict(row.to_dict()) == row
    old = {name: value for name, value in row.to_dict().items() if name != "grammar"}
    assert SweepRow.from_dict(old).grammar is None


def test_other_texts_have_no_law(tokenizer):
    assert grammar_reference("sotu", tokenizer) is None
