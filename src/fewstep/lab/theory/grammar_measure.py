"""Generated sentences judged by the grammar that the corpus was drawn from: a measure of sweeps.

N texts, L tokens, R branches.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fewstep.errors import UserError
from fewstep.evaluation.measures import take_tokens
from fewstep.evaluation.rows import Column, Setting, Value
from fewstep.evaluation.sweep import Measure, Samples, Statistic
from fewstep.lab.theory.grammar import AGREEMENTS, agreement_grammar, grammar_sentences
from fewstep.lab.theory.grammar_law import GrammarLaw
from fewstep.metrics.intervals import Interval, share_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from fewstep.evaluation.text_plan import TextStudy

FLOOR_DRAWS = 200
POOL = 2000
COLUMNS = {
    "valid": Column("valid", ".3f", interval=True),
    "broken": Column("broken", ".3f"),
    "nats_per_word": Column("nats / word", ".3f"),
    "branch_distance": Column("branches", ".3f"),
}
"""Those of its values that stand in the table of a sweep."""


def grammar_measure(study: "TextStudy") -> Measure:
    """The values of :meth:`GrammarJudge.values` for texts of the source ``grammar`` or ``grammar:N``."""
    judge, tokenizer = GrammarJudge(study.real.source), study.bundle.tokenizer

    def values(setting: Setting, samples: Samples) -> Mapping[str, Value | Statistic]:
        ids, text = samples.tensors["ids"], samples.tensors["text"]
        ended = ids.masked_fill(~text.bool(), int(tokenizer.eos_token_id))
        return judge.values(judge.judge(block_texts(tokenizer, ended)), samples.tensors["seed_index"])

    return Measure(
        values,
        take_tokens,
        {"grammar": judge.fingerprint},
        "valid: share that the grammar can write, with its Wilson interval; broken: sentences but for an agreement; "
        f"nats / word: exact, of the valid ones (the grammar's own mean is {judge.entropy_per_word:.3f}); branches: "
        "total variation from the grammar's",
        COLUMNS,
    )


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
        self.fingerprint = sentences.fingerprint
        self.law = sentences.law
        self.entropy_per_word = self.law.entropy_nats / self.law.num_words
        self._expected = torch.from_numpy(self.law.expected_uses)
        asked = {"": (), **{name: (name,) for name in AGREEMENTS}}
        self._laxer = {
            name: GrammarLaw(agreement_grammar(**{each: each in some for each in AGREEMENTS}), self.law.num_words)
            for name, some in asked.items()
        }

    def judge(self, texts: Sequence[str]) -> Judged:
        """The texts one by one; some milliseconds each."""
        log_probability = torch.full((len(texts),), -math.inf, dtype=torch.float64)
        uses = torch.zeros(len(texts), len(self._expected), dtype=torch.float64)
        formed = torch.zeros(len(texts), dtype=torch.bool)
        broken = {name: torch.zeros(len(texts), dtype=torch.bool) for name in AGREEMENTS}
        for row, text in enumerate(texts):
            words = text.strip(" ").split(" ")
            parse = self.law.parse(words)
            log_probability[row], uses[row] = parse.log_probability, torch.from_numpy(parse.uses)
            formed[row] = parse.is_sentence or self._laxer[""].parse(words).is_sentence
            for name in AGREEMENTS if formed[row] and not parse.is_sentence else ():
                broken[name][row] = not self._laxer[name].parse(words).is_sentence
        return Judged(log_probability, formed, broken, uses)

    def values(self, judged: Judged, seed_index: Tensor) -> dict[str, Value | Statistic]:
        """What a sweep keeps of N texts, whose seeds ``seed_index`` (N,) counts.

        ``valid``: share of texts that the grammar can write; ``broken``: sentences but for an agreement, also by
        agreement in ``broken_NAME`` (one text may break several); ``malformed``: the others. ``nats_per_word``: exact
        -log p over the number of words, mean of the valid texts. ``branch_distance`` in [0, 1]: total variation between
        the frequencies of branches in the valid texts and the exact ones of the law; ``branch_distance_by_chance`` has
        as its interval the middle 95 % of the same number of sentences drawn from the law. Undetermined where no text
        is valid.
        """
        valid = judged.valid
        nats, uses = -judged.log_probability[valid] / self.law.num_words, judged.uses[valid]
        by_seed = tuple(float(valid[seed_index == index].double().mean()) for index in seed_index.unique())
        return {
            "valid": share_value(valid, by_seed),
            "malformed": share_value(~judged.formed),
            "broken": share_value(judged.formed & ~valid),
            **{f"broken_{name}": share_value(hits) for name, hits in judged.broken.items()},
            "nats_per_word": Statistic(nats[:, None]),
            "branch_distance": Statistic(uses, lambda rows: total_variation(rows.sum(-2), self._expected)),
            "branch_distance_by_chance": self.chance(len(uses)) if len(uses) else Value(None),
        }

    def chance(self, num_sentences: int) -> Value:
        """Mean distance of ``num_sentences`` sentences of the law, and the middle 95 %, from resamples of 2,000.

        The distance is taken from the frequencies in all 2,000, which are the law as far as a resample knows.
        """
        drawn, generator = self._drawn, torch.Generator().manual_seed(0)
        picks = torch.randint(len(drawn), (FLOOR_DRAWS, num_sentences), generator=generator)
        counts = torch.zeros(FLOOR_DRAWS, len(drawn), dtype=torch.float64)
        counts.scatter_add_(1, picks, torch.ones_like(picks, dtype=torch.float64))
        distances = total_variation(counts @ drawn, drawn.sum(0))
        low, high = torch.quantile(distances, torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
        return Value(float(distances.mean()), Interval(low, high))

    @cached_property
    def _drawn(self) -> Tensor:
        """Uses of each branch (2,000, R) in sentences of the law."""
        generator = torch.Generator().manual_seed(1)
        rows = [torch.tensor(self.law.draw(generator).branches) for _ in range(POOL)]
        return torch.stack([torch.bincount(row, minlength=len(self._expected)) for row in rows]).double()


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


def share_value(hits: Tensor, by_seed: tuple[float, ...] = ()) -> Value:
    """The share of true entries of ``hits`` (N,) with Wilson's interval."""
    share = share_of(hits)
    return Value(share.value, share.interval, by_seed)


def total_variation(uses: Tensor, other: Tensor) -> Tensor:
    """Half the sum of absolute differences of two frequencies, given as counts (..., R) of any total. Returns (...)."""
    shares = [counts / counts.sum(-1, keepdim=True) for counts in (uses, other)]
    return (shares[0] - shares[1]).abs().sum(-1) / 2
