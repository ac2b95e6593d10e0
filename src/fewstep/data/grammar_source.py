"""The built-in source ``grammar``: which sentences a name stands for."""

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch

from fewstep.data.grammar import GrammarLaw
from fewstep.data.grammar_rules import agreement_grammar
from fewstep.errors import UserError

NUM_WORDS = 31
"""Words of a sentence where the name says nothing: with the end-of-text one block of 32 tokens."""
LONGEST = 255
"""Words of the longest sentences that may be asked for: the time to count them grows with the square."""
NUM_SENTENCES = 40_000
_NAME = re.compile(r"grammar(?::(\d+))?")


@dataclass(frozen=True)
class GrammarSentences:
    """``count`` sentences of ``num_words`` words drawn from the built-in grammar, the same for the same numbers.

    Raises ``UserError`` where the grammar has no sentence of that length.
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
        branches = [(one.symbol, one.parts, one.probability) for one in self.law.grammar.branches]
        return hashlib.sha256(json.dumps([branches, self.num_words, self.count, self.seed]).encode()).hexdigest()

    def texts(self) -> Iterator[str]:
        """The sentences, their words parted by single spaces."""
        generator = torch.Generator().manual_seed(self.seed)
        for _ in range(self.count):
            yield " ".join(self.law.draw(generator).words)


def grammar_sentences(source: str) -> GrammarSentences | None:
    """The sentences that a source's name stands for: ``grammar``, or ``grammar:N`` for N words; None for other names.

    Raises ``UserError`` where the grammar has no sentence of that length.
    """
    found = _NAME.fullmatch(source)
    if found is None:
        return None
    return GrammarSentences() if found[1] is None else GrammarSentences(int(found[1]))
