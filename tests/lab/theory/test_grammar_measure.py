"""What the grammar says about generated text, by itself and as a measure of a sweep."""

import math
from types import SimpleNamespace

import pytest
import torch

from fewstep.autoencoders import TransformerAutoencoder
from fewstep.cli.main import main
from fewstep.data.tokenizer import tokenizer_fingerprint, train_tokenizer
from fewstep.denoisers import RegressionDenoiser
from fewstep.evaluation.rows import Row, RowFile
from fewstep.evaluation.sweep import Samples, Statistic, Sweep
from fewstep.lab.theory.exact import ExactStudy
from fewstep.lab.theory.grammar import AGREEMENTS, GrammarSentences
from fewstep.lab.theory.grammar_measure import GrammarJudge, block_texts, grammar_measure, total_variation
from fewstep.metrics.intervals import share_interval
from fewstep.model import Identity, SavedModel
from fewstep.readouts import CausalTransformer, TransformerReadout


@pytest.fixture(scope="module")
def judge() -> GrammarJudge:
    return GrammarJudge(f"grammar:{len(CASES['valid'][0].split(' '))}")


SOURCE, NUM_WORDS = "grammar:15", 15
CASES = {
    "valid": ("paul says the kings near my dog watch the ship ( { red pink } grey ) , signed paul", set()),
    "number": ("paul says the kings near my dog watches the ship ( { red pink } grey ) , signed paul", {"number"}),
    "brackets": ("paul says the kings near my dog watch the ship ( { red pink ) grey } , signed paul", {"brackets"}),
    "names": ("paul says the kings near my dog watch the ship ( { red pink } grey ) , signed anna", {"names"}),
    "two": (
        "paul says the kings near my dog watches the ship ( { red pink } grey ) , signed anna",
        {"number", "names"},
    ),
    "all": ("paul says the king near my dog watch the ship ( { red pink ] grey ] , signed anna", set(AGREEMENTS)),
}


@pytest.mark.parametrize("case", CASES)
def test_a_broken_agreement_is_told_by_its_name(judge, case):
    text, broken = CASES[case]
    judged = judge.judge([text])
    assert bool(judged["valid"]) == (case == "valid")
    assert bool(judged["formed"])
    assert {name for name in AGREEMENTS if bool(judged[f"broken_{name}"])} == broken


@pytest.mark.parametrize(
    "text",
    [
        "paul says the kings near my dog watch the ship ( { red pink grey } , signed paul",  # a bracket too few
        "paul says the kings near my dog watch the ship ( { red pink } grey ) , signed paul paul",
        "paul says the kings near my dog watch the ship ( { red pink } grey ) ) , signed paul",
        "paul says the kings near mydog watch the ship the ship { red pink } , signed paul",
        "paul  says the kings near my dog watch the ship ( { red pink } grey ) , signed paul",
        "",
    ],
)
def test_what_no_agreement_can_mend_is_malformed(judge, text):
    judged = judge.judge([text])
    assert judged.pop("nats") == math.inf
    assert not any(bool(values.any()) for values in judged.values())


def values_of(judge: GrammarJudge, texts: list[str], seeds: list[int] | None = None) -> dict:
    seed_index = torch.tensor(seeds or [0] * len(texts))
    values = judge.values(judge.judge(texts), seed_index)
    return {name: value.value(2, 200) if isinstance(value, Statistic) else value for name, value in values.items()}


def test_the_laws_own_sentences_are_valid_at_its_entropy_and_no_farther_than_chance():
    sentences, judge = GrammarSentences(15, count=400, seed=5), GrammarJudge("grammar:15")
    values = values_of(judge, list(sentences))
    assert [values[name].value for name in ("valid", "malformed", "broken")] == [1, 0, 0]
    nats, chance = values["nats_per_word"].interval, values["branch_distance_by_chance"].interval
    assert nats.low < judge.entropy_per_word < nats.high
    assert 0 < chance.low <= values["branch_distance"].value <= chance.high


def test_sentences_of_other_frequencies_are_farther_than_chance():
    sentences, judge = GrammarSentences(15, count=1500, seed=5), GrammarJudge("grammar:15")
    skewed = [text for text in sentences if text.startswith(("anna", "bert", "carl"))][:200]
    values = values_of(judge, skewed)
    assert values["branch_distance"].value > 1.3 * values["branch_distance_by_chance"].interval.high


def test_shares_add_up_and_no_sentence_leaves_the_rest_undetermined(judge):
    texts = [text for text, _ in CASES.values()] + ["no sentence"]
    values = values_of(judge, texts, seeds=[0, 0, 0, 0, 1, 1, 1])
    assert sum(values[name].value for name in ("valid", "broken", "malformed")) == pytest.approx(1)
    assert values["valid"].by_seed == (0.25, 0.0)
    assert values["broken_number"].value == pytest.approx(3 / 7)
    none = values_of(judge, ["no sentence"])
    for name in ("nats_per_word", "branch_distance", "branch_distance_by_chance"):
        assert none[name].value is none[name].interval is None


def test_wilsons_interval_has_its_known_values():
    most = share_interval(torch.tensor([True] * 8 + [False] * 2))
    assert (most.low, most.high) == pytest.approx((0.4902, 0.9433), abs=1e-4)
    none = share_interval(torch.zeros(10, dtype=torch.bool))
    assert none.low == 0 and none.high == pytest.approx(0.2775, abs=1e-4)


def test_total_variation_is_half_the_sum_of_differences_of_frequencies():
    assert total_variation(torch.tensor([1.0, 1.0]), torch.tensor([3.0, 1.0])) == pytest.approx(0.25)
    assert total_variation(torch.tensor([2.0, 0.0]), torch.tensor([0.0, 5.0])) == 1


def test_an_end_of_text_inside_a_block_makes_it_no_sentence():
    texts = list(GrammarSentences(15, count=50))
    tokenizer, judge = train_tokenizer(texts, 600), GrammarJudge("grammar:15")
    eos = tokenizer.eos_token_id
    ids = tokenizer(texts[0])["input_ids"]
    blocks = torch.tensor([[*ids, eos], [eos, *ids], [*ids[:7], eos, *ids[7:]], [*ids, ids[-1]]])
    assert judge.judge(block_texts(tokenizer, blocks))["valid"].tolist() == [True, False, False, False]


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(list(GrammarSentences(NUM_WORDS, count=300)), 600)


@pytest.fixture(scope="module")
def bundle(tokenizer) -> SavedModel:
    """An untrained model of the grammar."""
    sizes = {"width": 16, "depth": 1, "num_heads": 2}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return SavedModel(
            tokenizer,
            Identity(NUM_WORDS + 1, tokenizer_fingerprint(tokenizer), source=SOURCE),
            autoencoder=TransformerAutoencoder(len(tokenizer), 6, stride=1, **sizes),
            readout=TransformerReadout(len(tokenizer), 6, stride=1, **sizes),
            denoiser=RegressionDenoiser(6, NUM_WORDS + 1, **sizes),
            language_model=CausalTransformer(len(tokenizer), **sizes),
        ).to("cpu")


@pytest.fixture(scope="module")
def rows(bundle, tmp_path_factory) -> dict[str, Row]:
    """What the command leaves, by the names of the texts."""
    folder = tmp_path_factory.mktemp("law")
    bundle.save_pretrained(folder / "model")
    options = ["--steps", "2", "--readout", "parallel", "--samples", "8", "--seeds", "2", "--cci_examples", "0"]
    place = ["--max_documents", "600", "--cache_dir", str(folder / "cache"), "--out", str(folder / "out")]
    assert main(["evaluate", str(folder / "model"), *options, *place, "--device", "cpu"]) == 0
    table = (folder / "out" / "table.md").read_text(encoding="utf-8")
    assert "| valid | 95 % interval | broken | nats / word | branches |" in table
    return {row.setting["name"]: row for row in RowFile(folder / "out" / "rows.jsonl").read()}


def test_in_a_sweep_held_out_sentences_are_valid_and_nothing_else_is(rows):
    shares = {name: row.value("valid") for name, row in rows.items()}
    assert shares.pop("held-out text") == 1 and len(shares) == 6 and not any(shares.values())
    assert all(len(row.values["valid"].by_seed) == 2 for row in rows.values())


def test_texts_of_the_exact_denoiser_are_judged_where_the_source_is_a_grammar(bundle):
    latents = torch.randn(8, NUM_WORDS + 1, 6, generator=torch.Generator().manual_seed(0))
    few = {"widths": (0.0,), "steps": (2,), "reinjections": (0.0,), "matched_steps": (), "caps": ()}
    rows = list(Sweep(ExactStudy(bundle, latents, 4, **few).plan()).rows())
    assert [row.value("valid") for row in rows] == [0, 0]
    assert rows[0].interval("valid").high > 0.1


def test_the_measure_judges_whole_blocks_up_to_their_padding(tokenizer):
    sentences = list(GrammarSentences(NUM_WORDS, count=3))
    ids = torch.tensor([[*tokenizer(text)["input_ids"], tokenizer.eos_token_id, 5] for text in sentences])
    mask = torch.ones_like(ids, dtype=torch.bool)
    study = SimpleNamespace(real=SimpleNamespace(source=SOURCE), bundle=SimpleNamespace(tokenizer=tokenizer))
    measure, seed_index = grammar_measure(study), torch.tensor([0, 0, 1])

    def valid() -> tuple[float, ...]:
        samples = Samples({"ids": ids, "text": mask, "seed_index": seed_index})
        return measure.values({"name": "flow"}, samples)["valid"].by_seed

    assert valid() == (0, 0)  # a stray token behind the end
    mask[:2, -1] = False
    assert valid() == (1, 0)
