"""The grammar's law is exact: held against the enumeration of all derivations, and against its own draws."""

import math
from collections import Counter
from itertools import product

import numpy as np
import pytest
import torch

from fewstep.data.corpus import prepare_corpus
from fewstep.data.sources import CorpusSettings, open_source
from fewstep.data.tokenizer import decode_blocks
from fewstep.errors import UserError
from fewstep.lab.theory.grammar import BRACKETS, NAMES, GrammarSentences, documents
from fewstep.lab.theory.grammar_law import Grammar, GrammarLaw

AMBIGUOUS = {
    "s": [(0.3, ("s", "s")), (0.25, ("t", "b", "s")), (0.35, ("a",)), (0.1, ("b",))],
    "t": [(3.0, ("s", "b")), (1.0, ("a",))],
}
"""Many derivations a string, a rule of three parts, a symbol on the left of itself, weights that sum to 4."""


def derivations(grammar: Grammar, parts: tuple[str, ...], length: int) -> list[tuple[float, tuple, tuple]]:
    """(probability, words, branches) of every derivation of ``length`` words from ``parts``, by plain enumeration."""
    if not parts:
        return [(1.0, (), ())] if length == 0 else []
    first, derived = parts[0], []
    for n in range(1, length - len(parts) + 2):
        if first not in grammar.numbered:
            heads = [(1.0, (first,), ())] if n == 1 else []
        else:
            heads = [
                (grammar.branches[number].probability * p, words, (number, *branches))
                for number in grammar.numbered[first]
                for p, words, branches in derivations(grammar, grammar.branches[number].parts, n)
            ]
        if heads:
            rest = derivations(grammar, parts[1:], length - n)
            derived += [(p * q, v + w, a + b) for p, v, a in heads for q, w, b in rest]
    return derived


@pytest.fixture(scope="module")
def sentences() -> GrammarSentences:
    return GrammarSentences(count=60)


@pytest.mark.parametrize("length", [1, 2, 3, 4, 5, 6])
def test_inside_equals_the_sum_over_all_derivations_and_is_zero_for_every_other_string(length):
    grammar = Grammar(AMBIGUOUS)
    law, expected, uses = GrammarLaw(grammar, length), Counter(), {}
    for probability, words, branches in derivations(grammar, ("s",), length):
        expected[words] += probability
        counts = np.bincount(branches, minlength=len(grammar.branches))
        uses[words] = uses.get(words, 0) + probability * counts
    for words in product("abc", repeat=length):
        parse = law.parse(words)
        assert (parse is not None) == (words in expected)
        if parse is not None:
            assert parse[0] == pytest.approx(math.log(expected[words]) - law.log_mass, abs=1e-12)
            np.testing.assert_allclose(parse[1], uses[words] / expected[words], atol=1e-12)
    assert law.parse([]) is law.parse("a" * (length + 1)) is None


@pytest.mark.parametrize("length", [2, 5])
def test_the_law_sums_to_one_and_knows_its_mean_uses_and_entropy(length):
    grammar = Grammar(AMBIGUOUS)
    law, every = GrammarLaw(grammar, length), derivations(grammar, ("s",), length)
    total = math.fsum(p for p, _, _ in every)
    assert law.log_mass == pytest.approx(math.log(total), abs=1e-12)
    parses = filter(None, (law.parse(words) for words in product("ab", repeat=length)))
    assert math.fsum(math.exp(parse[0]) for parse in parses) == pytest.approx(1, abs=1e-12)
    uses = sum(p / total * np.bincount(branches, minlength=len(grammar.branches)) for p, _, branches in every)
    np.testing.assert_allclose(law.expected_uses, uses, atol=1e-12)
    assert law.entropy_nats == pytest.approx(-math.fsum(p / total * math.log(p / total) for p, _, _ in every))


def test_draws_follow_the_law():
    grammar, count = Grammar(AMBIGUOUS), 20_000
    law, generator = GrammarLaw(grammar, 4), torch.Generator().manual_seed(0)
    drawn = Counter(tuple(law.draw(generator)[0]) for _ in range(count))
    chi_squared, cells = 0.0, 0
    for words in product("ab", repeat=4):
        parse = law.parse(words)
        if parse is None:
            assert words not in drawn
            continue
        expected = count * math.exp(parse[0])
        chi_squared, cells = chi_squared + (drawn[words] - expected) ** 2 / expected, cells + 1
    assert chi_squared < cells - 1 + 3.5 * math.sqrt(2 * (cells - 1))  # below 0.1 % by chance, and the seed is fixed


def test_every_sentence_of_the_built_in_grammar_has_one_derivation_and_its_length(sentences):
    law, generator = sentences.law, torch.Generator().manual_seed(3)
    for _ in range(60):
        words, branches = law.draw(generator)
        log_probability, uses = law.parse(words)
        alone = math.fsum(math.log(law.grammar.branches[number].probability) for number in branches)
        assert len(words) == 31
        np.testing.assert_allclose(uses, np.bincount(branches, minlength=len(uses)), atol=1e-9)
        assert log_probability == pytest.approx(alone - law.log_mass, abs=1e-9)


def test_names_brackets_and_numbers_agree_over_a_distance(sentences):
    closing = dict(BRACKETS)
    depths = []
    for text in sentences:
        words, open_brackets, deepest = text.split(" "), [], 0
        assert words[0] == words[-1] and words[0] in NAMES
        for word in words:
            if word in closing:
                open_brackets.append(closing[word])
                deepest = max(deepest, len(open_brackets))
            elif word in closing.values():
                assert word == open_brackets.pop()
        assert not open_brackets
        depths.append(deepest)
    assert max(depths) == 3 and len(set(depths)) > 1


def test_sentences_are_the_same_for_the_same_name_and_others_for_another():
    first, again = (list(GrammarSentences(15, count=20)) for _ in range(2))
    assert first == again and len(set(first)) == 20
    assert list(GrammarSentences(15, count=20, seed=1)) != first
    marks = {GrammarSentences(*numbers).fingerprint for numbers in ((15, 20), (16, 20), (15, 21), (15, 20, 1))}
    assert len(marks) == 4


def test_a_source_named_grammar_fills_each_block_with_one_sentence(tmp_path):
    settings = CorpusSettings("grammar:15", block_size=16, max_documents=400, cache_dir=str(tmp_path))
    corpus = prepare_corpus(settings)
    law = documents("15").law
    assert corpus.report.train.documents == len(corpus.train) == 380
    assert corpus.report.train.dropped_tokens == corpus.report.train.filled_positions == 0
    for split in (corpus.train, corpus.validation):
        ids = torch.from_numpy(split[:]["input_ids"])
        assert bool((ids[:, -1] == corpus.tokenizer.eos_token_id).all())
        assert all(law.parse(text.split(" ")) for text in decode_blocks(corpus.tokenizer, ids))


@pytest.mark.parametrize("name", ["grammar:5", "grammar:0", "grammar:128", "grammar:x"])
def test_a_length_without_sentences_is_one_line(name):
    with pytest.raises(UserError, match="no sentences of"):
        open_source(CorpusSettings(name))
