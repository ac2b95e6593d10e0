"""A probabilistic context-free grammar and the exact law of its sentences of one length. n words, R branches."""

import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from functools import cache, cached_property
from itertools import accumulate
from typing import NamedTuple

import numpy as np
import torch

Parts = tuple[str, ...]


class Branch(NamedTuple):
    """A rule ``symbol -> parts`` (symbols and words), chosen with ``probability``."""

    symbol: str
    parts: Parts
    probability: float


class Grammar:
    """Rules by symbol, each a list of (weight, parts); the weights of a symbol are scaled to sum to 1.

    A part that no rule is named after is a word. A single part must be a word: no rule only renames. The first symbol
    of ``rules`` is that of a sentence.
    """

    def __init__(self, rules: Mapping[str, Sequence[tuple[float, Parts]]]) -> None:
        self.start = (next(iter(rules)),)
        totals = {symbol: sum(weight for weight, _ in choices) for symbol, choices in rules.items()}
        self.branches = tuple(
            Branch(symbol, tuple(parts), weight / totals[symbol])
            for symbol, choices in rules.items()
            for weight, parts in choices
        )
        numbered = list(enumerate(self.branches))
        self.numbered = {symbol: [number for number, branch in numbered if branch.symbol == symbol] for symbol in rules}


class Inside:
    """Probability that parts in a row become ``words``, or any words of a length where ``words`` is None (float64).

    Recursions over the first part and its length, after the inside-outside algorithm (Baker 1979), that remember what
    they returned. A span is (parts, start, length): the words from ``start`` on, always 0 for any words. ``lengths``,
    those of any words, save trying what no words could become.
    """

    def __init__(self, grammar: Grammar, words: Sequence[str] | None = None, lengths: "Inside | None" = None) -> None:
        self.grammar = grammar
        self.words = words
        self.lengths = lengths
        self.mass = cache(self._mass)
        self.choices = cache(self._choices)
        self.uses = cache(self._uses)

    def _mass(self, parts: Parts, start: int, length: int) -> float:
        """The probability in [0, 1] that ``parts`` become the span."""
        if len(parts) == 1 and parts[0] not in self.grammar.numbered:
            return float(length == 1 and (self.words is None or self.words[start] == parts[0]))
        return math.fsum(mass for _, mass in self.choices(parts, start, length))

    def _choices(self, parts: Parts, start: int, length: int) -> list[tuple[int, float]]:
        """Branches of one symbol (none of a word), or lengths of the first of several parts, with the probability > 0
        that each is chosen and the whole becomes the span."""
        if self.lengths is not None:
            possible = [choice for choice, _ in self.lengths.choices(parts, 0, length)]
        elif len(parts) == 1:
            possible = self.grammar.numbered.get(parts[0], [])
        else:
            possible = list(range(1, length - len(parts) + 2))  # every part has at least one word
        masses = []
        for choice in possible:
            if len(parts) == 1:
                branch = self.grammar.branches[choice]
                mass = branch.probability * self.mass(branch.parts, start, length)
            elif mass := self.mass(parts[:1], start, choice):
                mass *= self.mass(*self._rest(parts, start, length, choice))
            masses.append((choice, mass))
        return [(choice, mass) for choice, mass in masses if mass > 0]

    def _uses(self, parts: Parts, start: int, length: int) -> np.ndarray:
        """Expected uses (R,) float64 of each branch when ``parts`` have become the span."""
        total = np.zeros(len(self.grammar.branches))
        for choice, mass in self.choices(parts, start, length):
            share = mass / self.mass(parts, start, length)
            if len(parts) > 1:
                rest = self.uses(*self._rest(parts, start, length, choice))
                total += share * (self.uses(parts[:1], start, choice) + rest)
            else:
                total += share * self.uses(self.grammar.branches[choice].parts, start, length)
                total[choice] += share
        return total

    def _rest(self, parts: Parts, start: int, length: int, first: int) -> tuple[Parts, int, int]:
        """The span of all but the first part, which became ``first`` words."""
        return parts[1:], 0 if self.words is None else start + first, length - first


class GrammarLaw:
    """The law of a grammar's sentences, given that they have ``num_words`` words: p(s) / P(length = ``num_words``).

    Sentences of one length fill blocks of one size without padding. Raises ``ValueError`` if no sentence has it.
    """

    def __init__(self, grammar: Grammar, num_words: int) -> None:
        self.grammar = grammar
        self.num_words = num_words
        self._lengths = Inside(grammar)
        mass = self._lengths.mass(grammar.start, 0, num_words)
        if mass <= 0:
            raise ValueError(f"the grammar has no sentence of {num_words} words: expected another length")
        self.log_mass = math.log(mass)

    @cached_property
    def expected_uses(self) -> np.ndarray:
        """How often each of the R branches is used in a sentence, on average: (R,) float64, exact."""
        return self._lengths.uses(self.grammar.start, 0, self.num_words)

    @property
    def entropy_nats(self) -> float:
        """Entropy of a sentence and its derivation, exact; that of the sentence alone where no sentence has two."""
        logs = np.log([branch.probability for branch in self.grammar.branches])
        return float(self.log_mass - self.expected_uses @ logs)

    def parse(self, words: Sequence[str]) -> tuple[float, np.ndarray] | None:
        """Log-probability of ``words`` in nats, summed over all derivations, and the expected uses (R,) of each branch
        in them; None where they are no sentence, or of another length."""
        span = self.grammar.start, 0, len(words)
        inside = Inside(self.grammar, words, self._lengths)
        if len(words) != self.num_words or not (mass := inside.mass(*span)):
            return None
        return math.log(mass) - self.log_mass, inside.uses(*span)

    def draw(self, generator: torch.Generator) -> tuple[list[str], list[int]]:
        """The words of a sentence by the exact law, and the numbers of the branches that produced them."""
        # As many numbers for every sentence.
        numbers = iter(torch.rand(4 * self.num_words, generator=generator, dtype=torch.float64).tolist())
        words: list[str] = []
        branches: list[int] = []
        pending: list[tuple[Parts, int]] = [(self.grammar.start, self.num_words)]
        while pending:
            parts, length = pending.pop()
            if len(parts) == 1 and parts[0] not in self.grammar.numbered:
                words.append(parts[0])
                continue
            choices, masses = zip(*self._lengths.choices(parts, 0, length), strict=True)
            cumulative = list(accumulate(masses))
            choice = choices[min(bisect_right(cumulative, next(numbers) * cumulative[-1]), len(choices) - 1)]
            if len(parts) > 1:
                pending += [(parts[1:], length - choice), (parts[:1], choice)]
            else:
                branches.append(choice)
                pending.append((self.grammar.branches[choice].parts, length))
        return words, branches
