"""A probabilistic context-free grammar and the exact law of its sentences of one length. n words, R branches."""

import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate

import numpy as np
import torch

Parts = tuple[str, ...]


@dataclass(frozen=True)
class Branch:
    """A rule ``symbol -> parts`` (symbols and words), chosen with ``probability``."""

    symbol: str
    parts: Parts
    probability: float


class Grammar:
    """Rules by symbol, each a list of (weight, parts); the weights of a symbol are scaled to sum to 1.

    A part that no rule is named after is a word. The first symbol of ``rules`` is that of a sentence. Raises
    ``ValueError`` for a rule without parts, one that only renames a symbol, and weights of 0 or below.
    """

    def __init__(self, rules: Mapping[str, Sequence[tuple[float, Parts]]]) -> None:
        self.start = next(iter(rules))
        branches = []
        for symbol, options in rules.items():
            total = sum(weight for weight, _ in options)
            for weight, parts in options:
                if not parts or (len(parts) == 1 and parts[0] in rules):
                    raise ValueError(f"{symbol} -> {parts}: expected one word, or two parts or more")
                if not weight > 0:
                    raise ValueError(f"{symbol} -> {parts} has weight {weight}: expected a number above 0")
                branches.append(Branch(symbol, tuple(parts), weight / total))
        self.branches = tuple(branches)
        self.numbered = {
            symbol: tuple(number for number, branch in enumerate(branches) if branch.symbol == symbol)
            for symbol in rules
        }

    @property
    def words(self) -> frozenset[str]:
        """All words that its sentences are made of."""
        return frozenset(part for branch in self.branches for part in branch.parts if part not in self.numbered)


@dataclass(frozen=True)
class Sentence:
    """``words`` drawn from a grammar, and the ``branches`` (numbers into ``Grammar.branches``) that produced them."""

    words: tuple[str, ...]
    branches: tuple[int, ...]


class Lengths:
    """Probability that a symbol, or parts in a row, become n words (float64).

    Recursions over the first part and its length, after the inside-outside algorithm (Baker 1979).
    """

    def __init__(self, grammar: Grammar) -> None:
        self.grammar = grammar
        self._masses: dict[tuple[Parts, int], float] = {}
        self._uses: dict[tuple[Parts, int], np.ndarray] = {}
        self._reached: dict[tuple[Parts, int], tuple[list[int], list[float]]] = {}

    def options(self, symbol: str, length: int) -> list[tuple[int, float]]:
        """Branches of ``symbol`` that can become ``length`` words, and the probability that they are taken and do."""
        branches = self.grammar.branches
        masses = [
            (number, branches[number].probability * self.mass(branches[number].parts, length))
            for number in self.grammar.numbered[symbol]
        ]
        return [(number, mass) for number, mass in masses if mass > 0]

    def splits(self, parts: Parts, length: int) -> list[tuple[int, float]]:
        """Lengths of the first of several ``parts``, and the probability of each together with the whole length."""
        longest = length - len(parts) + 1  # every part has at least one word
        masses = [(n, self.mass(parts[:1], n) * self.mass(parts[1:], length - n)) for n in range(1, longest + 1)]
        return [(n, mass) for n, mass in masses if mass > 0]

    def mass(self, parts: Parts, length: int) -> float:
        """The probability in [0, 1] that ``parts`` become ``length`` words."""
        if len(parts) == 1 and parts[0] not in self.grammar.numbered:
            return float(length == 1)
        if length < len(parts):
            return 0.0
        key = (parts, length)
        if key not in self._masses:
            inner = self.options(parts[0], length) if len(parts) == 1 else self.splits(parts, length)
            self._masses[key] = math.fsum(mass for _, mass in inner)
        return self._masses[key]

    def choose(self, parts: Parts, length: int, uniform: float) -> int:
        """A branch of one symbol, or the length of the first of several parts, at quantile ``uniform`` in [0, 1)."""
        key = (parts, length)
        if key not in self._reached:
            options = self.options(parts[0], length) if len(parts) == 1 else self.splits(parts, length)
            self._reached[key] = [value for value, _ in options], list(accumulate(mass for _, mass in options))
        values, cumulative = self._reached[key]
        return values[min(bisect_right(cumulative, uniform * cumulative[-1]), len(values) - 1)]

    def uses(self, parts: Parts, length: int) -> np.ndarray:
        """Expected uses (R,) float64 of each branch when ``parts`` have become ``length`` words."""
        key = (parts, length)
        if key in self._uses:
            return self._uses[key]
        total, mass = np.zeros(len(self.grammar.branches)), self.mass(parts, length)
        if len(parts) > 1:
            for n, share in self.splits(parts, length):
                total += share / mass * (self.uses(parts[:1], n) + self.uses(parts[1:], length - n))
        elif parts[0] in self.grammar.numbered:
            for number, share in self.options(parts[0], length):
                total += share / mass * self.uses(self.grammar.branches[number].parts, length)
                total[number] += share / mass
        self._uses[key] = total
        return total


class GrammarLaw:
    """The law of a grammar's sentences, given that they have ``num_words`` words: p(s) / P(length = ``num_words``).

    Sentences of one length fill blocks of one size without padding. Raises ``ValueError`` if no sentence has it.
    """

    def __init__(self, grammar: Grammar, num_words: int) -> None:
        self.grammar = grammar
        self.num_words = num_words
        self._lengths = Lengths(grammar)
        mass = self._lengths.mass((grammar.start,), num_words)
        if mass <= 0:
            raise ValueError(f"the grammar has no sentence of {num_words} words: expected another length")
        self.log_mass = math.log(mass)

    @cached_property
    def expected_uses(self) -> np.ndarray:
        """How often each of the R branches is used in a sentence, on average: (R,) float64, exact."""
        return self._lengths.uses((self.grammar.start,), self.num_words)

    @property
    def entropy_nats(self) -> float:
        """Entropy of a sentence and its derivation, exact; that of the sentence alone where no sentence has two."""
        logs = np.log([branch.probability for branch in self.grammar.branches])
        return float(self.log_mass - self.expected_uses @ logs)

    def draw(self, generator: torch.Generator) -> Sentence:
        """One sentence by the exact law, from a fixed number of uniform numbers of ``generator``."""
        numbers = iter(torch.rand(4 * self.num_words, generator=generator, dtype=torch.float64).tolist())
        words: list[str] = []
        branches: list[int] = []
        pending: list[tuple[Parts, int]] = [((self.grammar.start,), self.num_words)]
        while pending:
            parts, length = pending.pop()
            if len(parts) > 1:
                n = self._lengths.choose(parts, length, next(numbers))
                pending += [(parts[1:], length - n), (parts[:1], n)]
            elif parts[0] in self.grammar.numbered:
                branches.append(self._lengths.choose(parts, length, next(numbers)))
                pending.append((self.grammar.branches[branches[-1]].parts, length))
            else:
                words.append(parts[0])
        return Sentence(tuple(words), tuple(branches))


@dataclass(frozen=True)
class Parse:
    """``log_probability`` of a string in nats, summed over all derivations, -inf if it is no sentence.

    ``branches``: those of the likeliest derivation, from the root, left before right; empty if it is no sentence.
    """

    log_probability: float
    branches: tuple[int, ...] = ()

    @property
    def is_sentence(self) -> bool:
        """Whether the grammar derives the string."""
        return self.log_probability > -math.inf


NO_SENTENCE = Parse(-math.inf)


@dataclass(slots=True)
class _Cell:
    """One symbol over one span: ``inside`` and ``best`` in nats, and the origin of the best."""

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
        """Probability and likeliest derivation of any number of ``words``."""
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


def _add(span: Span, parent: Parts, cell: _Cell) -> None:
    """One more derivation of ``parent``: probabilities add up, the likelier derivation is kept."""
    known = span.get(parent)
    if known is None:
        span[parent] = cell
        return
    high, low = max(known.inside, cell.inside), min(known.inside, cell.inside)
    known.inside = high + math.log1p(math.exp(low - high))
    if cell.best > known.best:
        known.best, known.branch, known.below = cell.best, cell.branch, cell.below


def _branches(root: _Cell) -> list[int]:
    numbers, pending = [], [root]
    while pending:
        cell = pending.pop()
        if cell.branch >= 0:
            numbers.append(cell.branch)
        pending += reversed(cell.below)
    return numbers


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
