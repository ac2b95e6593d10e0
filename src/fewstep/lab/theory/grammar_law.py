"""A probabilistic context-free grammar and the exact law of its sentences of one length. n words, R branches."""

import math
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
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


class Inside:
    """Probability that parts in a row become ``words``, or any words of a length where ``words`` is None (float64).

    Recursions over the first part and its length, after the inside-outside algorithm (Baker 1979). A span is (parts,
    start, length): the words from ``start`` on, which is always 0 for any words. ``lengths``, those of any words, save
    trying what no words could become.
    """

    def __init__(self, grammar: Grammar, words: Sequence[str] | None = None, lengths: "Inside | None" = None) -> None:
        self.grammar = grammar
        self.words = words
        self.lengths = lengths
        self._choices: dict[tuple[Parts, int, int], list[tuple[int, float]]] = {}
        self._masses: dict[tuple[Parts, int, int], float] = {}
        self._uses: dict[tuple[Parts, int, int], np.ndarray] = {}

    def mass(self, parts: Parts, start: int, length: int) -> float:
        """The probability in [0, 1] that ``parts`` become the span."""
        if len(parts) == 1 and parts[0] not in self.grammar.numbered:
            return float(length == 1 and (self.words is None or self.words[start] == parts[0]))
        key = (parts, start, length)
        if key not in self._masses:
            self._masses[key] = math.fsum(mass for _, mass in self.choices(*key))
        return self._masses[key]

    def choices(self, parts: Parts, start: int, length: int) -> list[tuple[int, float]]:
        """Branches of one symbol, or lengths of the first of several parts, that can become the span.

        Each with the probability that it is chosen and the whole becomes the span.
        """
        key = (parts, start, length)
        if key not in self._choices:
            if self.lengths is not None:
                possible: Iterable[int] = [choice for choice, _ in self.lengths.choices(parts, 0, length)]
            elif len(parts) == 1:
                possible = self.grammar.numbered[parts[0]]
            else:
                possible = range(1, length - len(parts) + 2)  # every part has at least one word
            probability = self._branch_mass if len(parts) == 1 else self._split_mass
            masses = [(choice, probability(choice, *key)) for choice in possible]
            self._choices[key] = [(choice, mass) for choice, mass in masses if mass > 0]
        return self._choices[key]

    def _branch_mass(self, number: int, parts: Parts, start: int, length: int) -> float:
        branch = self.grammar.branches[number]
        return branch.probability * self.mass(branch.parts, start, length)

    def _split_mass(self, n: int, parts: Parts, start: int, length: int) -> float:
        first = self.mass(parts[:1], start, n)
        return first * self.mass(parts[1:], self._after(start, n), length - n) if first else 0.0

    def uses(self, parts: Parts, start: int, length: int) -> np.ndarray:
        """Expected uses (R,) float64 of each branch when ``parts`` have become the span."""
        key = (parts, start, length)
        if key in self._uses:
            return self._uses[key]
        total, mass = np.zeros(len(self.grammar.branches)), self.mass(parts, start, length)
        if len(parts) > 1:
            for n, share in self.choices(parts, start, length):
                rest = self.uses(parts[1:], self._after(start, n), length - n)
                total += share / mass * (self.uses(parts[:1], start, n) + rest)
        elif parts[0] in self.grammar.numbered:
            for number, share in self.choices(parts, start, length):
                total += share / mass * self.uses(self.grammar.branches[number].parts, start, length)
                total[number] += share / mass
        self._uses[key] = total
        return total

    def _after(self, start: int, length: int) -> int:
        return 0 if self.words is None else start + length


@dataclass(frozen=True)
class Parse:
    """What a law says about a string: its log-probability in nats, summed over all derivations, and the expected
    ``uses`` (R,) of each branch in them; -inf and zeros where it is no sentence."""

    log_probability: float
    uses: np.ndarray

    @property
    def is_sentence(self) -> bool:
        """Whether the grammar derives the string."""
        return self.log_probability > -math.inf


class GrammarLaw:
    """The law of a grammar's sentences, given that they have ``num_words`` words: p(s) / P(length = ``num_words``).

    Sentences of one length fill blocks of one size without padding. Raises ``ValueError`` if no sentence has it.
    """

    def __init__(self, grammar: Grammar, num_words: int) -> None:
        self.grammar = grammar
        self.num_words = num_words
        self._lengths = Inside(grammar)
        mass = self._lengths.mass((grammar.start,), 0, num_words)
        if mass <= 0:
            raise ValueError(f"the grammar has no sentence of {num_words} words: expected another length")
        self.log_mass = math.log(mass)

    @cached_property
    def expected_uses(self) -> np.ndarray:
        """How often each of the R branches is used in a sentence, on average: (R,) float64, exact."""
        return self._lengths.uses((self.grammar.start,), 0, self.num_words)

    @property
    def entropy_nats(self) -> float:
        """Entropy of a sentence and its derivation, exact; that of the sentence alone where no sentence has two."""
        logs = np.log([branch.probability for branch in self.grammar.branches])
        return float(self.log_mass - self.expected_uses @ logs)

    def parse(self, words: Sequence[str]) -> Parse:
        """log p(words), and what they are made of; no sentence where the number of words is another."""
        root = (self.grammar.start,), 0, len(words)
        inside = Inside(self.grammar, words, self._lengths)
        if len(words) != self.num_words or not (mass := inside.mass(*root)):
            return Parse(-math.inf, np.zeros(len(self.grammar.branches)))
        return Parse(math.log(mass) - self.log_mass, inside.uses(*root))

    def draw(self, generator: torch.Generator) -> Sentence:
        """One sentence by the exact law, from a fixed number of uniform numbers of ``generator``."""
        numbers = iter(torch.rand(4 * self.num_words, generator=generator, dtype=torch.float64).tolist())
        words: list[str] = []
        branches: list[int] = []
        pending: list[tuple[Parts, int]] = [((self.grammar.start,), self.num_words)]
        while pending:
            parts, length = pending.pop()
            if len(parts) > 1:
                n = self._choose(parts, length, next(numbers))
                pending += [(parts[1:], length - n), (parts[:1], n)]
            elif parts[0] in self.grammar.numbered:
                branches.append(self._choose(parts, length, next(numbers)))
                pending.append((self.grammar.branches[branches[-1]].parts, length))
            else:
                words.append(parts[0])
        return Sentence(tuple(words), tuple(branches))

    def _choose(self, parts: Parts, length: int, uniform: float) -> int:
        """A branch of one symbol, or the length of the first of several parts, at quantile ``uniform`` in [0, 1)."""
        values, masses = zip(*self._lengths.choices(parts, 0, length), strict=True)
        cumulative = list(accumulate(masses))
        return int(values[min(bisect_right(cumulative, uniform * cumulative[-1]), len(values) - 1)])
