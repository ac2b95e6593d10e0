"""Generated sentences judged by the grammar that the corpus was drawn from: a measure of sweeps.

N texts, L tokens, R branches.
"""

import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fewstep.evaluation.measures import take_tokens
from fewstep.evaluation.rows import Column, Setting, Value
from fewstep.evaluation.sweep import Measure, Samples, Statistic
from fewstep.lab.theory.grammar import AGREEMENTS, agreement_grammar, documents
from fewstep.lab.theory.grammar_law import GrammarLaw
from fewstep.metrics.intervals import Interval, share_interval

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from fewstep.evaluation.text_plan import TextStudy

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


class GrammarJudge:
    """Judges texts, words parted by single spaces, by the law of a source ``grammar`` or ``grammar:N``.

    Raises ``UserError`` for a length without sentences.
    """

    def __init__(self, source: str) -> None:
        sentences = documents(source.partition(":")[2])
        self.fingerprint, self.law = sentences.fingerprint, sentences.law
        self.entropy_per_word = self.law.entropy_nats / self.law.num_words
        self._expected = torch.from_numpy(self.law.expected_uses)
        self._laxer = {
            name: GrammarLaw(agreement_grammar(**{each: each == name for each in AGREEMENTS}), self.law.num_words)
            for name in ("", *AGREEMENTS)
        }

    def judge(self, texts: Sequence[str]) -> dict[str, Tensor]:
        """What the grammar says about N texts, some milliseconds each.

        (N,) bool: ``valid``, the grammar can write it; ``formed``, so once no agreement is asked for; ``broken_NAME``,
        formed and not valid where this agreement alone is asked for, so that "number" means: all would be well but for
        a verb. ``nats`` (N,) float64: exact -log p, inf where not valid. ``uses`` (N, R) float64: how often a valid
        text used each branch.
        """
        nats = torch.full((len(texts),), math.inf, dtype=torch.float64)
        uses = torch.zeros(len(texts), len(self._expected), dtype=torch.float64)
        names = ("formed", *(f"broken_{name}" for name in AGREEMENTS))
        hits = {name: torch.zeros(len(texts), dtype=torch.bool) for name in names}
        for row, text in enumerate(texts):
            words = text.strip(" ").split(" ")
            if (parse := self.law.parse(words)) is not None:
                hits["formed"][row], nats[row], uses[row] = True, -parse[0], torch.from_numpy(parse[1])
            elif self._laxer[""].parse(words) is not None:
                hits["formed"][row] = True
                for name in AGREEMENTS:
                    hits[f"broken_{name}"][row] = self._laxer[name].parse(words) is None
        return {"valid": nats < math.inf, "nats": nats, "uses": uses, **hits}

    def values(self, judged: Mapping[str, Tensor], seed_index: Tensor) -> dict[str, Value | Statistic]:
        """What a sweep keeps of N texts, whose seeds ``seed_index`` (N,) counts.

        Shares of texts: ``valid``; ``broken``, formed but not valid, also by agreement (one text may break several);
        ``malformed``, the others. Of the valid texts ``nats_per_word``, and ``branch_distance`` in [0, 1]: total
        variation between their frequencies of branches and the exact ones, beside that ``by_chance`` of as many.
        """
        valid, formed = judged["valid"], judged["formed"]
        uses = judged["uses"][valid]
        by_seed = tuple(float(valid[seed_index == index].double().mean()) for index in seed_index.unique())
        return {
            "valid": share_value(valid, by_seed),
            "malformed": share_value(~formed),
            "broken": share_value(formed & ~valid),
            **{name: share_value(hits) for name, hits in judged.items() if name.startswith("broken_")},
            "nats_per_word": Statistic(judged["nats"][valid, None] / self.law.num_words),
            "branch_distance": Statistic(uses, lambda rows: total_variation(rows.sum(-2), self._expected)),
            "branch_distance_by_chance": self.chance(len(uses)) if len(uses) else Value(None),
        }

    def chance(self, num_sentences: int) -> Value:
        """Mean distance of ``num_sentences`` sentences of the law, and the middle 95 % as its interval.

        From 200 resamples of 2,000 sentences, whose frequencies are the law as far as a resample knows.
        """
        picks = torch.randint(len(self._drawn), (200, num_sentences), generator=torch.Generator().manual_seed(0))
        distances = total_variation(torch.stack([self._drawn[row].sum(0) for row in picks]), self._drawn.sum(0))
        low, high = torch.quantile(distances, torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
        return Value(float(distances.mean()), Interval(low, high))

    @cached_property
    def _drawn(self) -> Tensor:
        """Uses of each branch (2,000, R) in sentences of the law."""
        generator = torch.Generator().manual_seed(1)
        rows = [torch.tensor(self.law.draw(generator)[1]) for _ in range(2000)]
        return torch.stack([row.bincount(minlength=len(self._expected)) for row in rows]).double()


def block_texts(tokenizer: "PreTrainedTokenizerFast", ids: Tensor) -> list[str]:
    """The text of each block of ``ids`` (N, L), one sentence: all but the ends of text at its end.

    An end of text anywhere else is left in and shown, so that no such block is a sentence.
    """
    texts = []
    for row in ids.tolist():
        while row and row[-1] == tokenizer.eos_token_id:
            row.pop()
        texts.append(str(tokenizer.decode(row, skip_special_tokens=False, clean_up_tokenization_spaces=False)))
    return texts


def share_value(hits: Tensor, by_seed: tuple[float, ...] = ()) -> Value:
    """The share of true entries of ``hits`` (N,) with Wilson's interval."""
    return Value(float(hits.double().mean()), share_interval(hits), by_seed)


def total_variation(uses: Tensor, other: Tensor) -> Tensor:
    """Half the sum of absolute differences of two frequencies, given as counts (..., R) of any total. Returns (...)."""
    shares = [counts / counts.sum(-1, keepdim=True) for counts in (uses, other)]
    return (shares[0] - shares[1]).abs().sum(-1) / 2
