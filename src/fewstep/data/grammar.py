"""A probabilistic context-free grammar, and the law of its sentences of one length."""

import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

import numpy as np
import torch

Parts = tuple[str, ...]


@dataclass(frozen=True)
class Branch:
    """One way to write ``symbol``: ``parts`` (symbols and words), chosen with ``probability``."""

    symbol: str
    parts: Parts
    probability: float


class Grammar:
    """Rules by symbol, each a list of (weight, parts); the weights of a symbol are scaled to sum to 1.

    What no rule is named after is a word. A rule has two parts or more, or one word. ``rules`` starts with the symbol
    of a sentence. Raises ``ValueError`` for a rule without parts, one that only renames a symbol, and weights of 0 or
    below.
    """

    def __init__(self, rules: Mapping[str, Sequence[tuple[float, Parts]]]) -> None:
        self.start = next(iter(rules))
        branches = []
        for symbol, ways in rules.items():
            total = sum(weight for weight, _ in ways)
            for weight, parts in ways:
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
    """``words`` drawn from a grammar, and the ``branches`` (numbers into ``Grammar.branches``) that made them."""

    words: tuple[str, ...]
    branches: tuple[int, ...]


class Lengths:
    """How probable it is that a symbol, or parts in a row, become n words. Sums are exact but for rounding (float64).

    ``mass(parts, n)`` is the sum over all ways to write ``parts`` in n words of their probabilities; ``uses(parts, n)``
    (R,) the expected number of uses of each of the R branches, given that length. Recursions over the first part and
    its length; this project's own, after the inside-outside algorithm (Baker 1979).
    """

    def __init__(self, grammar: Grammar) -> None:
        self.grammar = grammar
        self._masses: dict[tuple[Parts, int], float] = {}
        self._uses: dict[tuple[Parts, int], np.ndarray] = {}
        self._options: dict[tuple[Parts, int], tuple[list[int], list[float]]] = {}

    def ways(self, symbol: str, length: int) -> list[tuple[int, float]]:
        """Branches of ``symbol`` that can become ``length`` words, and the probability that they are taken and do."""
        branches = self.grammar.branches
        found = [
            (number, branches[number].probability * self.mass(branches[number].parts, length))
            for number in self.grammar.numbered[symbol]
        ]
        return [(number, mass) for number, mass in found if mass > 0]

    def splits(self, parts: Parts, length: int) -> list[tuple[int, float]]:
        """Lengths of the first of several ``parts``, and the probability of each together with the whole length."""
        most = length - len(parts) + 1  # every part has a word at least
        found = [(n, self.mass(parts[:1], n) * self.mass(parts[1:], length - n)) for n in range(1, most + 1)]
        return [(n, mass) for n, mass in found if mass > 0]

    def mass(self, parts: Parts, length: int) -> float:
        """The probability in [0, 1] that ``parts`` become ``length`` words."""
        if len(parts) == 1 and parts[0] not in self.grammar.numbered:
            return float(length == 1)
        if length < len(parts):
            return 0.0
        key = (parts, length)
        if key not in self._masses:
            inner = self.ways(parts[0], length) if len(parts) == 1 else self.splits(parts, length)
            self._masses[key] = math.fsum(mass for _, mass in inner)
        return self._masses[key]

    def choose(self, parts: Parts, length: int, uniform: float) -> int:
        """A branch of one symbol, or the length of the first of several parts, at quantile ``uniform`` in [0, 1)."""
        key = (parts, length)
        if key not in self._options:
            options = self.ways(parts[0], length) if len(parts) == 1 else self.splits(parts, length)
            self._options[key] = [value for value, _ in options], list(accumulate(mass for _, mass in options))
        values, reached = self._options[key]
        return values[min(bisect_right(reached, uniform * reached[-1]), len(values) - 1)]

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
            for number, share in self.ways(parts[0], length):
                total += share / mass * self.uses(self.grammar.branches[number].parts, length)
                total[number] += share / mass
        self._uses[key] = total
        return total


class GrammarLaw:
    """The law of a grammar's sentences, given that they have ``num_words`` words: p(s) / P(length = ``num_words``).

    Sentences of one length fill blocks of one size, without padding and without a cut. Raises ``ValueError`` where no
    sentence has that length.
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
        """One sentence, exactly by the law. Draws uniform numbers from ``generator``, a fixed number of them."""
        numbers = iter(torch.rand(4 * self.num_words, generator=generator, dtype=torch.float64).tolist())
        words: list[str] = []
        branches: list[int] = []
        waiting: list[tuple[Parts, int]] = [((self.grammar.start,), self.num_words)]
        while waiting:
            parts, length = waiting.pop()
            if len(parts) > 1:
                n = self._lengths.choose(parts, length, next(numbers))
                waiting += [(parts[1:], length - n), (parts[:1], n)]
            elif parts[0] in self.grammar.numbered:
                branches.append(self._lengths.choose(parts, length, next(numbers)))
                waiting.append((self.grammar.branches[branches[-1]].parts, length))
            else:
                words.append(parts[0])
        return Sentence(tuple(words), tuple(branches))
