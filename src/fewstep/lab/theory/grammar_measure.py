"""What the exact law of a grammar says of sampled sentences: a measure of sweeps. N texts, R branches."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fewstep.evaluation.measures import take_tokens
from fewstep.evaluation.rows import Column, Setting, Value
from fewstep.evaluation.sweep import Measure, Samples, Statistic
from fewstep.lab.theory.grammar_judge import GrammarJudge, Judged, block_texts
from fewstep.lab.theory.grammar_law import GrammarLaw
from fewstep.metrics.intervals import Interval, share_of

if TYPE_CHECKING:
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
    """The values of :class:`GrammarValues` for texts of the source ``grammar`` or ``grammar:N``."""
    judge, tokenizer = GrammarJudge(study.real.source), study.bundle.tokenizer
    measured = GrammarValues(judge.law)

    def values(setting: Setting, samples: Samples) -> Mapping[str, Value | Statistic]:
        ids, mask = samples.tensors["ids"], samples.tensors["mask"]
        ended = ids.masked_fill(~mask.bool(), int(tokenizer.eos_token_id))
        return measured.of(judge.judge(block_texts(tokenizer, ended)), samples.tensors["seed_index"])

    return Measure(
        values,
        take_tokens,
        {"grammar": judge.fingerprint},
        "valid: share that the grammar can write, with its Wilson interval; broken: sentences but for an agreement; "
        f"nats / word: exact, of the valid ones (the grammar's own mean is {measured.entropy_per_word:.3f}); branches: "
        "total variation from the grammar's",
        COLUMNS,
    )


class GrammarValues:
    """What a grammar's ``law`` says about judged texts.

    ``valid``: share of texts that it can write; ``broken``: sentences but for an agreement, also by agreement in
    ``broken_NAME`` (one text may break several); ``malformed``: the others. ``nats_per_word``: exact -log p over the
    number of words, mean of the valid texts. ``branch_distance`` in [0, 1]: total variation between the frequencies of
    branches in the valid texts and the exact ones of the law; ``branch_distance_by_chance`` has as its interval the
    middle 95 % of the same number of sentences drawn from the law. Undetermined where no text is valid.
    """

    def __init__(self, law: GrammarLaw) -> None:
        self.law = law
        self.expected = torch.from_numpy(law.expected_uses)
        self.entropy_per_word = law.entropy_nats / law.num_words
        self._drawn: Tensor | None = None

    def of(self, judged: Judged, seed_index: Tensor) -> dict[str, Value | Statistic]:
        """The values of N texts, whose seeds ``seed_index`` (N,) counts."""
        valid = judged.valid
        nats, uses = -judged.log_probability[valid] / self.law.num_words, judged.uses[valid]
        by_seed = tuple(float(valid[seed_index == index].double().mean()) for index in seed_index.unique())
        broken = {f"broken_{name}": share_value(hits) for name, hits in judged.broken.items()}
        return {
            "valid": share_value(valid, by_seed),
            "malformed": share_value(~judged.formed),
            "broken": share_value(judged.formed & ~valid),
            **broken,
            "nats_per_word": Statistic(nats[:, None]),
            "branch_distance": Statistic(uses, lambda rows: total_variation(rows.sum(-2), self.expected)),
            "branch_distance_by_chance": self.chance(len(uses)) if len(uses) else Value(None),
        }

    def chance(self, num_sentences: int) -> Value:
        """Mean distance of ``num_sentences`` sentences of the law, and the middle 95 %, from resamples of 2,000.

        The distance is taken from the frequencies in all 2,000, which are the law as far as a resample knows.
        """
        drawn, generator = self._sentences(), torch.Generator().manual_seed(0)
        picks = torch.randint(len(drawn), (FLOOR_DRAWS, num_sentences), generator=generator)
        counts = torch.zeros(FLOOR_DRAWS, len(drawn), dtype=torch.float64)
        counts.scatter_add_(1, picks, torch.ones_like(picks, dtype=torch.float64))
        distances = total_variation(counts @ drawn, drawn.sum(0))
        low, high = torch.quantile(distances, torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
        return Value(float(distances.mean()), Interval(low, high))

    def _sentences(self) -> Tensor:
        """Uses of each branch (2,000, R) in sentences of the law."""
        if self._drawn is None:
            generator = torch.Generator().manual_seed(1)
            rows = [torch.tensor(self.law.draw(generator).branches) for _ in range(POOL)]
            self._drawn = torch.stack([torch.bincount(row, minlength=len(self.expected)) for row in rows]).double()
        return self._drawn


def share_value(hits: Tensor, by_seed: tuple[float, ...] = ()) -> Value:
    """The share of true entries of ``hits`` (N,) with Wilson's interval."""
    share = share_of(hits)
    return Value(share.value, share.interval, by_seed)


def total_variation(uses: Tensor, other: Tensor) -> Tensor:
    """Half the sum of absolute differences of two frequencies, given as counts (..., R) of any total. Returns (...)."""
    shares = [counts / counts.sum(-1, keepdim=True) for counts in (uses, other)]
    return (shares[0] - shares[1]).abs().sum(-1) / 2
