"""Generated sentences judged by the grammar that the corpus was drawn from. N texts, L tokens, R branches."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fewstep.errors import UserError
from fewstep.lab.theory.grammar import AGREEMENTS, agreement_grammar, grammar_sentences
from fewstep.lab.theory.grammar_law import GrammarLaw, InsideParser, SentenceLaw

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


@dataclass(frozen=True)
class Judged:
    """What the grammar says about N texts, all on the CPU.

    ``log_probability`` (N,) float64 nats, exact, -inf for a text that is no sentence. ``formed`` (N,) bool: a sentence
    once no agreement is asked for. ``broken``, by the names in ``AGREEMENTS``, (N,) bool: formed, but no sentence where
    only this agreement is asked for. ``uses`` (N, R) float64: how often a sentence used each branch, else 0.
    """

    log_probability: Tensor
    formed: Tensor
    broken: dict[str, Tensor]
    uses: Tensor

    def __len__(self) -> int:
        return len(self.log_probability)

    @property
    def valid(self) -> Tensor:
        """(N,) bool, true where the grammar can write the text."""
        return self.log_probability > -math.inf


class GrammarJudge:
    """Judges texts by the law of a source ``grammar`` or ``grammar:N``.

    A text is its words, parted by single spaces. Each agreement is checked by laxer grammars
    (:func:`fewstep.lab.theory.grammar.agreement_grammar`), so that "broken number" means: all would be well but for a
    verb. Raises ``UserError`` for another source.
    """

    def __init__(self, source: str) -> None:
        sentences = grammar_sentences(source)
        if sentences is None:
            raise UserError(f"source is {source!r}: exact probabilities need 'grammar' or 'grammar:N'")
        self.source = source
        self.fingerprint = sentences.fingerprint
        self.law: GrammarLaw = sentences.law
        self._strict = SentenceLaw(self.law)
        self._lax = InsideParser(agreement_grammar(number=False, brackets=False, names=False))
        self._only = {
            name: InsideParser(agreement_grammar(**{each: each == name for each in AGREEMENTS})) for name in AGREEMENTS
        }

    def judge(self, texts: Sequence[str]) -> Judged:
        """The texts one by one; a few milliseconds each."""
        log_probability = torch.full((len(texts),), -math.inf, dtype=torch.float64)
        uses = torch.zeros(len(texts), len(self.law.grammar.branches), dtype=torch.float64)
        formed = torch.zeros(len(texts), dtype=torch.bool)
        broken = {name: torch.zeros(len(texts), dtype=torch.bool) for name in AGREEMENTS}
        for row, text in enumerate(texts):
            words = text.strip(" ").split(" ")
            parse = self._strict.parse(words)
            if parse.is_sentence:
                log_probability[row], formed[row] = parse.log_probability, True
                uses[row] = torch.bincount(torch.tensor(parse.branches), minlength=uses.shape[1])
            elif len(words) == self.law.num_words and self._lax.parse(words).is_sentence:
                formed[row] = True
                for name, parser in self._only.items():
                    broken[name][row] = not parser.parse(words).is_sentence
        return Judged(log_probability, formed, broken, uses)


def block_texts(tokenizer: "PreTrainedTokenizerFast", ids: Tensor) -> list[str]:
    """The text of each block of ``ids`` (N, L): all but the ends of text at its end.

    One block is one sentence here. An end of text anywhere else is left in and shown, so that no such block is one.
    """
    texts = []
    for row in ids.tolist():
        while row and row[-1] == tokenizer.eos_token_id:
            row.pop()
        texts.append(str(tokenizer.decode(row, skip_special_tokens=False, clean_up_tokenization_spaces=False)))
    return texts
