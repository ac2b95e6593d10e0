"""The inside algorithm: the exact probability of a string of words under a grammar. n words, R branches."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from fewstep.data.grammar import Grammar, GrammarLaw, Parts


@dataclass(frozen=True)
class Parse:
    """What a grammar says about a string.

    ``log_probability`` in nats, summed over all derivations, -inf for a string that is no sentence. ``branches``: those
    of the likeliest derivation, from the root, left before right (numbers into ``Grammar.branches``); empty for no
    sentence.
    """

    log_probability: float
    branches: tuple[int, ...] = ()

    @property
    def is_sentence(self) -> bool:
        """Whether the grammar can write the string."""
        return self.log_probability > -math.inf


NO_SENTENCE = Parse(-math.inf)


@dataclass(slots=True)
class _Cell:
    """One symbol over one span: ``inside`` and ``best`` in nats, and where the best came from."""

    inside: float
    best: float
    branch: int
    below: tuple["_Cell", ...] = field(default=())


Span = dict[Parts, _Cell]
"""The symbols (or tails of a rule) that a span of words can be."""


class InsideParser:
    """The inside algorithm (Baker 1979) in log space and float64, on charts that hold only what the words allow.

    Rules of three parts and more are read as chains of pairs: first part, then the tail of the others.
    """

    def __init__(self, grammar: Grammar) -> None:
        self.grammar = grammar
        self._lexical: dict[str, list[tuple[Parts, float, int]]] = {
            word: [((word,), 0.0, -1)] for word in grammar.words
        }
        self._pairs: dict[Parts, dict[Parts, list[tuple[Parts, float, int]]]] = {}
        tails = set()
        for number, branch in enumerate(grammar.branches):
            log_probability = math.log(branch.probability)
            if len(branch.parts) == 1:
                self._lexical[branch.parts[0]].append(((branch.symbol,), log_probability, number))
            else:
                self._add_pair(branch.parts, (branch.symbol,), log_probability, number)
                tails |= {branch.parts[first:] for first in range(1, len(branch.parts) - 1)}
        for tail in sorted(tails):
            self._add_pair(tail, tail, 0.0, -1)

    def _add_pair(self, parts: Parts, parent: Parts, log_probability: float, number: int) -> None:
        self._pairs.setdefault(parts[:1], {}).setdefault(parts[1:], []).append((parent, log_probability, number))

    def parse(self, words: Sequence[str]) -> Parse:
        """Probability and likeliest derivation of ``words``, whatever their number."""
        if not words or any(word not in self._lexical for word in words):
            return NO_SENTENCE
        root = self._chart(words)[0][len(words)].get((self.grammar.start,))
        return NO_SENTENCE if root is None else Parse(root.inside, tuple(_branches(root)))

    def _chart(self, words: Sequence[str]) -> list[list[Span]]:
        """chart[i][j]: what the words i .. j - 1 can be."""
        n = len(words)
        chart: list[list[Span]] = [[] for _ in words]
        for i in reversed(range(n)):
            row: list[Span] = [{} for _ in range(n + 1)]
            for parent, log_probability, number in self._lexical[words[i]]:
                _add(row[i + 1], parent, _Cell(log_probability, log_probability, number))
            for middle in range(i + 1, n):  # spans that end at `middle` are complete: their own splits lie before it
                for end in range(middle + 1, n + 1):
                    self._join(row[middle], chart[middle][end], row[end])
            chart[i] = row
        return chart

    def _join(self, left: Span, right: Span, into: Span) -> None:
        if not right:
            return
        for first, cell in left.items():
            followers = self._pairs.get(first, {})
            for second in followers.keys() & right.keys():
                other = right[second]
                for parent, log_probability, number in followers[second]:
                    inside = log_probability + cell.inside + other.inside
                    best = log_probability + cell.best + other.best
                    _add(into, parent, _Cell(inside, best, number, (cell, other)))


def _add(span: Span, parent: Parts, found: _Cell) -> None:
    """One more way to be ``parent``: probabilities add up, the better derivation is kept."""
    known = span.get(parent)
    if known is None:
        span[parent] = found
        return
    high, low = max(known.inside, found.inside), min(known.inside, found.inside)
    known.inside = high + math.log1p(math.exp(low - high))
    if found.best > known.best:
        known.best, known.branch, known.below = found.best, found.branch, found.below


def _branches(root: _Cell) -> list[int]:
    found, waiting = [], [root]
    while waiting:
        cell = waiting.pop()
        if cell.branch >= 0:
            found.append(cell.branch)
        waiting += reversed(cell.below)
    return found


class SentenceLaw:
    """Log-probability of any string under the law of a grammar's sentences of one length, by the inside algorithm."""

    def __init__(self, law: GrammarLaw) -> None:
        self.law = law
        self.parser = InsideParser(law.grammar)

    def parse(self, words: Sequence[str]) -> Parse:
        """log p(words) - log P(length), and the derivation; no sentence where the number of words is another."""
        if len(words) != self.law.num_words:
            return NO_SENTENCE
        parse = self.parser.parse(words)
        return Parse(parse.log_probability - self.law.log_mass, parse.branches) if parse.is_sentence else NO_SENTENCE
