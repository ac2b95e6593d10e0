"""The text source ``grammar``: sentences of a known law, whose distant words must agree."""

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import product

import torch

from fewstep.errors import UserError
from fewstep.lab.theory.grammar_law import Grammar, GrammarLaw, Parts

NUM_WORDS = 31
"""Default words of a sentence: with the end-of-text one block of 32 tokens."""
LONGEST = 127
"""Words of the longest sentences allowed: probabilities of longer ones could be less than a float holds."""
NUM_SENTENCES = 40_000
_NAME = re.compile(r"grammar(?::(\d+))?")


def _listed(words: str) -> tuple[str, ...]:
    return tuple(words.split())


NAMES = _listed("anna bert carl dora emma fred gina hugo iris jack kate liam mona nils olga paul")
DETERMINERS = _listed("the some no my")
ADJECTIVES = _listed("old young tall slow quiet proud clever lonely")
NOUNS = _listed("ship horse doctor farmer king bridge river painter dog train singer tower")
VERBS = _listed("follow admire watch fear greet forget remember paint visit answer love miss")
PREPOSITIONS = _listed("near behind above beside")
LINKS = _listed("and but while because")
ITEMS = _listed("red blue green gold grey pink black white brown violet silver orange")
BRACKETS = (("(", ")"), ("[", "]"), ("{", "}"))
NUMBERS = ("singular", "plural")

Rules = dict[str, list[tuple[float, Parts]]]
AGREEMENTS = ("number", "brackets", "names")
"""What must agree: a verb with its noun, a closing bracket with its opening one, the last name with the first."""


def agreement_grammar(*, number: bool = True, brackets: bool = True, names: bool = True) -> Grammar:
    """The grammar, or a laxer one in which an agreement that is False need not hold.

    A sentence is ``NAME says BODY , signed NAME`` with the same name twice. The body is a chain of clauses. In each,
    the verb agrees in number with a noun from which a relative clause or a prepositional phrase, with nouns of any
    number, may separate it; determiners do not show the number. A clause may end in a bracketed group, nested to depth
    3, whose closing brackets match their opening ones. No sentence has two derivations if all agreements hold.
    """
    rules: Rules = {"sentence": _frames(names)}
    rules |= {"body": [], "clause": [], "object": []}
    noun_kinds = NUMBERS if number else ("any",)
    for kind in noun_kinds:
        rules["clause"].append((1, (f"subject {kind}", f"predicate {kind}")))
        rules |= _noun_phrases(kind, noun_kinds)
    # A body of one clause is that clause, spelled out, since a rule may not only rename.
    rules["body"] = [(weight / len(noun_kinds), parts) for weight, parts in rules["clause"]]
    rules["body"].append((1, ("clause", "link", "body")))
    for kind in noun_kinds:
        rules["object"] += [
            (2, ("determiner", f"noun {kind}")),
            (1, ("determiner", "adjective", f"noun {kind}")),
        ]
    rules |= _groups(brackets)
    for symbol, words in (
        ("determiner", DETERMINERS),
        ("adjective", ADJECTIVES),
        ("preposition", PREPOSITIONS),
        ("link", LINKS),
        ("item", ITEMS),
    ):
        rules[symbol] = _words(words)
    return Grammar(rules)


def _words(words: tuple[str, ...]) -> list[tuple[float, Parts]]:
    return [(1, (word,)) for word in words]


def _frames(must_agree: bool) -> list[tuple[float, Parts]]:
    pairs = [(name, name) for name in NAMES] if must_agree else list(product(NAMES, NAMES))
    return [(1, (first, "says", "body", ",", "signed", last)) for first, last in pairs]


def _noun_phrases(kind: str, noun_kinds: tuple[str, ...]) -> Rules:
    """Subject, relative clause and predicate of a number, with its nouns and verbs."""
    noun, verb, relative = f"noun {kind}", f"verb {kind}", f"relative {kind}"
    forms = {
        "singular": (NOUNS, tuple(_with_s(word) for word in VERBS)),
        "plural": (tuple(_with_s(word) for word in NOUNS), VERBS),
    }
    forms["any"] = (forms["singular"][0] + forms["plural"][0], forms["singular"][1] + forms["plural"][1])
    nouns, verbs = forms[kind]
    share = 1 / len(noun_kinds)
    others = [(f"noun {other}", f"verb {other}") for other in noun_kinds]
    return {
        f"subject {kind}": [
            (1, ("determiner", noun)),
            (1, ("determiner", "adjective", noun)),
            (4, ("determiner", noun, relative)),
            *((2 * share, ("determiner", noun, "preposition", "determiner", other)) for other, _ in others),
        ],
        relative: [
            (1, ("that", verb, "object")),
            *((share, ("that", "determiner", other, other_verb)) for other, other_verb in others),
        ],
        f"predicate {kind}": [(1, (verb, "object")), (2, (verb, "object", "group 1"))],
        noun: _words(nouns),
        verb: _words(verbs),
    }


def _with_s(word: str) -> str:
    return word + ("es" if word.endswith(("s", "ch", "sh")) else "s")


def _groups(must_match: bool) -> Rules:
    """Bracketed groups of depth 1 to 3; a group contains items and groups of the next depth."""
    opening, closing = zip(*BRACKETS, strict=True)
    pairs = BRACKETS if must_match else tuple(product(opening, closing))
    rules: Rules = {
        f"group {depth}": [(1, (left, f"inside {depth}", right)) for left, right in pairs] for depth in (1, 2, 3)
    }
    for depth in (1, 2):
        inner = f"group {depth + 1}"
        contents: list[Parts] = [
            ("item", "item"),
            ("item", inner),
            (inner, "item"),
            (inner, inner),
            ("item", inner, "item"),
        ]
        rules[f"inside {depth}"] = [(1, parts) for parts in contents]
    rules["inside 3"] = [(1, ("item", "item")), (1, ("item", "item", "item"))]
    return rules


@dataclass(frozen=True)
class GrammarSentences:
    """``count`` sentences of ``num_words`` words drawn from the grammar, the same for the same numbers.

    Raises ``UserError`` if the grammar has no sentence of that length.
    """

    num_words: int = NUM_WORDS
    count: int = NUM_SENTENCES
    seed: int = 0

    def __post_init__(self) -> None:
        try:
            possible = self.num_words <= LONGEST and self.law is not None
        except ValueError:
            possible = False
        if not possible:
            raise UserError(
                f"source grammar:{self.num_words}: the grammar has no sentences of {self.num_words} words; expected a "
                f"number from 10 to {LONGEST}, such as {NUM_WORDS}"
            )

    @cached_property
    def law(self) -> GrammarLaw:
        """The law that the sentences are drawn from."""
        return GrammarLaw(agreement_grammar(), self.num_words)

    @property
    def fingerprint(self) -> str:
        """Hash (64 hex digits) of the grammar's branches, the length, the count and the seed."""
        branches = [(branch.symbol, branch.parts, branch.probability) for branch in self.law.grammar.branches]
        return hashlib.sha256(json.dumps([branches, self.num_words, self.count, self.seed]).encode()).hexdigest()

    def texts(self) -> Iterator[str]:
        """The sentences, words separated by single spaces."""
        generator = torch.Generator().manual_seed(self.seed)
        for _ in range(self.count):
            yield " ".join(self.law.draw(generator).words)


def grammar_sentences(source: str) -> GrammarSentences | None:
    """The sentences of a source ``grammar``, or ``grammar:N`` for N words; None for other names.

    Raises ``UserError`` if the grammar has no sentence of that length.
    """
    name = _NAME.fullmatch(source)
    if name is None:
        return None
    return GrammarSentences() if name[1] is None else GrammarSentences(int(name[1]))


def documents(num_words: str = str(NUM_WORDS)) -> Iterator[str]:
    """The sentences as a source of text: ``--data.source=grammar`` or ``grammar:N``."""
    sentences = grammar_sentences(f"grammar:{num_words}")
    if sentences is None:
        raise UserError(f"source grammar:{num_words}: expected a number of words from 10 to {LONGEST}, as grammar:31")
    return sentences.texts()
