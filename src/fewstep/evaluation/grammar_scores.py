"""Columns of a table of sentences that a grammar judged, each with its interval. N texts, R branches."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from fewstep.evaluation.grammar import Judged
from fewstep.lab.theory.grammar import AGREEMENTS
from fewstep.lab.theory.grammar_law import GrammarLaw
from fewstep.metrics.intervals import Interval, Share, bootstrap_interval, share_of

COLUMNS = ("valid", "95 % interval", "malformed", "broken", *AGREEMENTS, "nats / word", "branches", "by chance", "N")
SWEEP_COLUMNS = ("valid", "of texts", "broken", "nats / word", "branches")
"""The few of them that stand beside a sweep's own columns; "of texts" is the interval of the valid share."""
FLOOR_DRAWS = 200
POOL = 2000


@dataclass(frozen=True)
class GrammarScores:
    """What a grammar says about the texts of one setting.

    ``valid``: share of texts that it can write; ``broken``: sentences but for an agreement, also by agreement in
    ``broken_by`` (one text may break several); ``malformed``: the others, so that these three add up to 1.
    ``nats_per_word``: exact -log p over the number of words, mean of the valid texts; the law's own is
    ``entropy_per_word``, and less means that likelier sentences than the grammar's are written. ``branch_distance`` in
    [0, 1]: total variation between the frequencies of branches in the valid texts and the exact ones of the law, all
    branches of all symbols together; a finite number of sentences is never at 0, so ``branch_distance_by_chance`` is
    the range (95 %) of the same number of sentences drawn from the law. None where no text is valid. The intervals of
    nats and distance are bootstrap ones over texts; resampling adds noise to a distance, so that its interval lies
    rather high.
    """

    valid: Share
    valid_by_seed: tuple[float, ...]
    malformed: Share
    broken: Share
    broken_by: dict[str, Share]
    nats_per_word: float | None
    nats_interval: Interval | None
    entropy_per_word: float
    branch_distance: float | None
    branch_interval: Interval | None
    branch_distance_by_chance: Interval | None

    def cells(self) -> tuple[str, ...]:
        """The scores as strings, one for each of ``COLUMNS``."""
        chance, interval = self.branch_distance_by_chance, self.valid.interval
        return (
            f"{self.valid.value:.3f}",
            f"{interval.low:.3f} - {interval.high:.3f}",
            f"{self.malformed.value:.3f}",
            f"{self.broken.value:.3f}",
            *(f"{self.broken_by[name].value:.3f}" for name in AGREEMENTS),
            "" if self.nats_per_word is None else f"{self.nats_per_word:.3f}",
            "" if self.branch_distance is None else f"{self.branch_distance:.3f}",
            "" if chance is None else f"{chance.low:.3f} - {chance.high:.3f}",
            str(self.valid.total),
        )

    def sweep_cells(self) -> tuple[str, ...]:
        """The scores as strings, one for each of ``SWEEP_COLUMNS``."""
        cells = dict(zip(COLUMNS, self.cells(), strict=True))
        return tuple(cells["95 % interval" if name == "of texts" else name] for name in SWEEP_COLUMNS)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "GrammarScores":
        """The inverse of :meth:`to_dict`, also after a way through JSON."""
        shares = {name: _share(values[name]) for name in ("valid", "malformed", "broken")}
        names = ("nats_interval", "branch_interval", "branch_distance_by_chance")
        intervals = {name: None if values[name] is None else Interval(**values[name]) for name in names}
        broken_by = {name: _share(share) for name, share in values["broken_by"].items()}
        by_seed = tuple(values["valid_by_seed"])
        return cls(**{**values, **shares, **intervals, "broken_by": broken_by, "valid_by_seed": by_seed})


def _share(values: dict[str, Any]) -> Share:
    return Share(values["value"], Interval(**values["interval"]), values["total"])


class GrammarMeasures:
    """Makes the columns. ``num_resamples`` for the bootstrap; everything random comes from fixed generators."""

    def __init__(self, law: GrammarLaw, *, num_resamples: int = 1000) -> None:
        self.law = law
        self.num_resamples = num_resamples
        self.expected = torch.from_numpy(law.expected_uses)
        self._drawn: Tensor | None = None

    def scores(self, judged: Judged, seeds: Sequence[int] | None = None) -> GrammarScores:
        """The columns of N texts, ``seeds`` (N numbers) telling of which seed each is. Raises ValueError for none."""
        valid, owners = judged.valid, torch.tensor([0] * len(judged) if seeds is None else list(seeds))
        nats, uses = -judged.log_probability[valid] / self.law.num_words, judged.uses[valid]
        some = len(nats) > 0
        return GrammarScores(
            valid=share_of(valid),
            valid_by_seed=tuple(float(valid[owners == one].double().mean()) for one in owners.unique()),
            malformed=share_of(~judged.formed),
            broken=share_of(judged.formed & ~valid),
            broken_by={name: share_of(found) for name, found in judged.broken.items()},
            nats_per_word=float(nats.mean()) if some else None,
            nats_interval=self._interval(nats, _mean) if some else None,
            entropy_per_word=self.entropy_per_word,
            branch_distance=self.distance(uses) if some else None,
            branch_interval=self._interval(uses, self.distance) if some else None,
            branch_distance_by_chance=self.chance(len(uses)) if some else None,
        )

    @property
    def entropy_per_word(self) -> float:
        """The law's own mean of nats a word."""
        return self.law.entropy_nats / self.law.num_words

    def distance(self, uses: Tensor) -> float:
        """Total variation between the branch frequencies of sentences, ``uses`` (N, R) of each, and the law's."""
        return float(total_variation(uses.sum(0), self.expected))

    def chance(self, num_sentences: int) -> Interval:
        """The middle 95 % of the distance of ``num_sentences`` sentences of the law, from resamples of 2,000 of them.

        The distance is taken from the frequencies in all 2,000, which are the law as far as a resample knows.
        """
        drawn, generator = self._sentences(), torch.Generator().manual_seed(0)
        picks = torch.randint(len(drawn), (FLOOR_DRAWS, num_sentences), generator=generator)
        counts = torch.zeros(FLOOR_DRAWS, len(drawn), dtype=torch.float64)
        counts.scatter_add_(1, picks, torch.ones_like(picks, dtype=torch.float64))
        distances = total_variation(counts @ drawn, drawn.sum(0))
        low, high = torch.quantile(distances, torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
        return Interval(low, high)

    def _sentences(self) -> Tensor:
        """Uses of each branch (2,000, R) in sentences of the law."""
        if self._drawn is None:
            generator = torch.Generator().manual_seed(1)
            rows = [torch.tensor(self.law.draw(generator).branches) for _ in range(POOL)]
            self._drawn = torch.stack([torch.bincount(row, minlength=len(self.expected)) for row in rows]).double()
        return self._drawn

    def _interval(self, values: Tensor, statistic: Any) -> Interval:
        return bootstrap_interval(values, statistic, self.num_resamples, torch.Generator().manual_seed(0))


def _mean(values: Tensor) -> float:
    return float(values.mean())


def total_variation(uses: Tensor, other: Tensor) -> Tensor:
    """Half the sum of absolute differences of two frequencies, given as counts (..., R) of any total. Returns (...)."""
    shares = [counts / counts.sum(-1, keepdim=True) for counts in (uses, other)]
    return (shares[0] - shares[1]).abs().sum(-1) / 2
