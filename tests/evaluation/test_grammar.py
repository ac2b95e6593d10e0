"""What the grammar says about generated text."""

import json
import math

import pytest
import torch

from fewstep.data import train_tokenizer
from fewstep.errors import UserError
from fewstep.evaluation.grammar import GrammarJudge, block_texts
from fewstep.evaluation.grammar_scores import COLUMNS, GrammarMeasures, GrammarScores, total_variation
from fewstep.lab.theory.grammar import AGREEMENTS, GrammarSentences
from fewstep.metrics.intervals import share_of


@pytest.fixture(scope="module")
def judge() -> GrammarJudge:
    return GrammarJudge(f"grammar:{len(CASES['valid'][0].split(' '))}")


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
    assert bool(judged.valid[0]) == (case == "valid")
    assert bool(judged.formed[0])
    assert {name for name, found in judged.broken.items() if bool(found[0])} == broken


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
    assert not bool(judged.valid[0]) and not bool(judged.formed[0])
    assert not any(bool(found[0]) for found in judged.broken.values())
    assert judged.uses.sum() == 0 and judged.log_probability[0] == -math.inf


def test_only_a_grammar_has_exact_probabilities():
    with pytest.raises(UserError, match="grammar"):
        GrammarJudge("sotu")


def test_the_laws_own_sentences_are_valid_at_its_entropy_and_no_farther_than_chance():
    sentences, judge = GrammarSentences(15, count=400, seed=5), GrammarJudge("grammar:15")
    scores = GrammarMeasures(judge.law, num_resamples=200).scores(judge.judge(list(sentences.texts())))
    assert scores.valid.value == 1 and scores.malformed.value == scores.broken.value == 0
    assert scores.nats_interval.low < scores.entropy_per_word < scores.nats_interval.high
    chance = scores.branch_distance_by_chance
    assert 0 < chance.low <= scores.branch_distance <= chance.high


def test_sentences_of_other_frequencies_are_farther_than_chance():
    sentences, judge = GrammarSentences(15, count=1500, seed=5), GrammarJudge("grammar:15")
    skewed = [text for text in sentences.texts() if text.startswith(("anna", "bert", "carl"))][:200]
    scores = GrammarMeasures(judge.law, num_resamples=50).scores(judge.judge(skewed))
    assert scores.branch_distance > 1.3 * scores.branch_distance_by_chance.high


def test_shares_add_up_and_the_scores_survive_json(judge):
    texts = [text for text, _ in CASES.values()] + ["no sentence"]
    measures = GrammarMeasures(judge.law, num_resamples=20)
    scores = measures.scores(judge.judge(texts), seeds=[0, 0, 0, 0, 1, 1, 1])
    assert scores.valid.value + scores.broken.value + scores.malformed.value == pytest.approx(1)
    assert scores.valid_by_seed == (0.25, 0.0)
    assert scores.broken_by["number"].value == pytest.approx(3 / 7)
    assert len(scores.cells()) == len(COLUMNS)
    assert GrammarScores.from_dict(json.loads(json.dumps(scores.to_dict()))) == scores
    none = measures.scores(judge.judge(["no sentence"]))
    assert none.nats_per_word is none.branch_distance is none.branch_interval is None
    assert GrammarScores.from_dict(json.loads(json.dumps(none.to_dict()))) == none


def test_wilsons_interval_has_its_known_values():
    share = share_of(torch.tensor([True] * 8 + [False] * 2))  # 8 of 10: 0.490 to 0.943
    assert (share.value, share.total) == (0.8, 10)
    assert share.interval.low == pytest.approx(0.4902, abs=1e-4)
    assert share.interval.high == pytest.approx(0.9433, abs=1e-4)
    none = share_of(torch.zeros(10, dtype=torch.bool))
    assert none.interval.low == 0 and none.interval.high == pytest.approx(0.2775, abs=1e-4)
    with pytest.raises(ValueError, match="nothing to count"):
        share_of(torch.zeros(0, dtype=torch.bool))


def test_total_variation_is_half_the_sum_of_differences_of_frequencies():
    assert total_variation(torch.tensor([1.0, 1.0]), torch.tensor([3.0, 1.0])) == pytest.approx(0.25)
    assert total_variation(torch.tensor([2.0, 0.0]), torch.tensor([0.0, 5.0])) == 1


def test_an_end_of_text_inside_a_block_makes_it_no_sentence():
    texts = list(GrammarSentences(15, count=50).texts())
    tokenizer, judge = train_tokenizer(texts, 600), GrammarJudge("grammar:15")
    eos = tokenizer.eos_token_id
    ids = tokenizer(texts[0])["input_ids"]
    blocks = torch.tensor([[*ids, eos], [eos, *ids], [*ids[:7], eos, *ids[7:]], [*ids, ids[-1]]])
    assert judge.judge(block_texts(tokenizer, blocks)).valid.tolist() == [True, False, False, False]
