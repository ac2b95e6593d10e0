"""The text source ``grammar``: sentences of a known law, whose distant words must agree."""

import hashlib
import json
from collections.abc import Iterable, Iterator
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

WORDS = {
    "name": "anna bert carl dora emma fred gina hugo iris jack kate liam mona nils olga paul",
    "noun": "ship horse doctor farmer king bridge river painter dog train singer tower",
    "verb": "follow admire watch fear greet forget remember paint visit answer love miss",
    "determiner": "the some no my",
    "adjective": "old young tall slow quiet proud clever lonely",
    "preposition": "near behind above beside",
    "link": "and but while because",
    "item": "red blue green gold grey pink black white brown violet silver orange",
}
NAMES, NOUNS, VERBS = (WORDS[name].split() for name in ("name", "noun", "verb"))
BRACKETS = (("(", ")"), ("[", "]"), ("{", "}"))

Choices = list[tuple[float, Parts]]
AGREEMENTS = ("number", "brackets", "names")
"""What must agree: a verb with its noun, a closing bracket with its opening one, the last name with the first."""


def agreement_grammar(*, number: bool = True, brackets: bool = True, names: bool = True) -> Grammar:
    """The grammar, or a laxer one in which an agreement that is False need not hold.

    A sentence is ``NAME says BODY , signed NAME`` with the same name twice. The body is a chain of clauses. In each,
    the verb agrees in number with a noun from which a relative clause or a prepositional phrase, with nouns of any
    number, may separate it; determiners do not show the number. A clause may end in a bracketed group, nested to depth
    3, whose closing brackets match their opening ones. No sentence has two derivations if all agreements hold.
    """
    kinds = ("singular", "plural") if number else ("any",)
    frames = [(name, name) for name in NAMES] if names else product(NAMES, NAMES)
    clauses: Choices = [(1, (f"subject {kind}", f"predicate {kind}")) for kind in kinds]
    rules: dict[str, Choices] = {
        "sentence": [(1, (first, "says", "body", ",", "signed", last)) for first, last in frames],
        # A body of one clause is that clause, spelled out, since a rule may not only rename.
        "body": [*((weight / len(kinds), parts) for weight, parts in clauses), (1, ("clause", "link", "body"))],
        "clause": clauses,
        "object": [],
    }
    for kind in kinds:
        rules["object"] += [(2, ("determiner", f"noun {kind}")), (1, ("determiner", "adjective", f"noun {kind}"))]
        rules |= _noun_phrases(kind, kinds)
    rules |= _groups(brackets)
    further = ("determiner", "adjective", "preposition", "link", "item")
    return Grammar(rules | {symbol: _words(WORDS[symbol].split()) for symbol in further})


def _words(words: Iterable[str]) -> Choices:
    return [(1, (word,)) for word in words]


def _noun_phrases(kind: str, kinds: tuple[str, ...]) -> dict[str, Choices]:
    """Subject, relative clause and predicate of a number, with its nouns and verbs."""
    noun, verb, relative = f"noun {kind}", f"verb {kind}", f"relative {kind}"
    nouns = {"singular": NOUNS, "plural": [_with_s(word) for word in NOUNS]}
    verbs = {"singular": [_with_s(word) for word in VERBS], "plural": VERBS}
    share = 1 / len(kinds)
    return {
        f"subject {kind}": [
            (1, ("determiner", noun)),
            (1, ("determiner", "adjective", noun)),
            (4, ("determiner", noun, relative)),
            *((2 * share, ("determiner", noun, "preposition", "determiner", f"noun {other}")) for other in kinds),
        ],
        relative: [
            (1, ("that", verb, "object")),
            *((share, ("that", "determiner", f"noun {other}", f"verb {other}")) for other in kinds),
        ],
        f"predicate {kind}": [(1, (verb, "object")), (2, (verb, "object", "group 1"))],
        noun: _words(nouns.get(kind, nouns["singular"] + nouns["plural"])),
        verb: _words(verbs.get(kind, verbs["singular"] + verbs["plural"])),
    }


def _with_s(word: str) -> str:
    return word + ("es" if word.endswith(("s", "ch", "sh")) else "s")


def _groups(must_match: bool) -> dict[str, Choices]:
    """Bracketed groups of depth 1 to 3; a group contains items and groups of the next depth."""
    pairs = BRACKETS if must_match else tuple(product(*zip(*BRACKETS, strict=True)))
    rules: dict[str, Choices] = {
        f"group {depth}": [(1, (left, f"inside {depth}", right)) for left, right in pairs] for depth in (1, 2, 3)
    }
    for depth in (1, 2):
        inner = f"group {depth + 1}"
        contents = [("item", "item"), ("item", inner), (inner, "item"), (inner, inner), ("item", inner, "item")]
        rules[f"inside {depth}"] = [(1, parts) for parts in contents]
    rules["inside 3"] = [(1, ("item", "item")), (1, ("item", "item", "item"))]
    return rules


@dataclass(frozen=True)
class GrammarSentences:
    """``count`` sentences of ``num_words`` words drawn from the grammar, the same for the same numbers: an iterable."""

    num_words: int = NUM_WORDS
    count: int = NUM_SENTENCES
    seed: int = 0

    @cached_property
    def law(self) -> GrammarLaw:
        """The law that the sentences are drawn from."""
        return GrammarLaw(agreement_grammar(), self.num_words)

    @property
    def fingerprint(self) -> str:
        """Hash (64 hex digits) of the grammar's branches, the length, the count and the seed."""
        settings = [self.law.grammar.branches, self.num_words, self.count, self.seed]
        return hashlib.sha256(json.dumps(settings).encode()).hexdigest()

    def __iter__(self) -> Iterator[str]:
        """The sentences, words separated by single spaces."""
        generator = torch.Generator().manual_seed(self.seed)
        for _ in range(self.count):
            yield " ".join(self.law.draw(generator)[0])


def documents(num_words: str = "") -> GrammarSentences:
    """The sentences as a source of text: ``--data.source=grammar``, or ``grammar:N`` for N words.

    Raises ``UserError`` if the grammar has no sentence of that length.
    """
    try:
        sentences = GrammarSentences(int(num_words or NUM_WORDS))
        possible = sentences.num_words <= LONGEST and sentences.law is not None
    except ValueError:
        possible = False
    if not possible:
        raise UserError(
            f"source grammar:{num_words}: the grammar has no sentences of {num_words} words; expected a "
            f"number from 10 to {LONGEST}, such as {NUM_WORDS}"
        )
    return sentences
