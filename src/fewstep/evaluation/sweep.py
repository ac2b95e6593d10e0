"""The sweep engine: samples of every setting, made, measured and written row by row. It knows no kind of data.

B samples of a batch, N samples of a setting, R resamples, c numbers of a sample.
"""

import json
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from fewstep.errors import UserError
from fewstep.evaluation.processes import Processes, Progress
from fewstep.evaluation.rows import (
    COLUMNS,
    Column,
    Key,
    Row,
    RowFile,
    Setting,
    Value,
    canonical_json,
    differences,
    hash_of,
    key_of,
    label_of,
)
from fewstep.evaluation.scorers import weights_digest
from fewstep.metrics.intervals import bootstrap_interval
from fewstep.model import SavedModel


@dataclass(frozen=True)
class Batch:
    """Samples ``first`` .. ``first + count - 1`` of ``seed``, the ``seed_index``-th, of which there are ``num_samples``
    of each seed."""

    seed_index: int
    seed: int
    first: int
    count: int
    num_samples: int = 0

    @property
    def rows(self) -> slice:
        """Which of the texts of all seeds stand beside these samples."""
        start = self.seed_index * self.num_samples + self.first
        return slice(start, start + self.count)


@dataclass(frozen=True)
class Samples:
    """Samples of one setting: ``tensors`` by name on the CPU, whose first dimension is the samples'.

    ``seconds`` that making them took; ``numbers`` of the setting, such as ``nfe``, become values of the row.
    """

    tensors: Mapping[str, Tensor]
    seconds: float | None = None
    numbers: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Group:
    """Settings whose samples are made together: ``make`` gives the batch's samples of each of the settings asked for.

    ``model`` (a digest) and ``num_samples`` take the place of the plan's.
    """

    settings: tuple[Setting, ...]
    make: Callable[[Batch, Sequence[Setting]], list[Samples]]
    model: str | None = None
    num_samples: int | None = None


@dataclass(frozen=True)
class Statistic:
    """A number of a set of samples: ``of`` takes ``rows`` (..., N, c) float64 to (...), by default to their mean.

    The engine adds its bootstrap interval over samples, and with ``seed_index`` (N,) its value for each seed. Without
    rows it is undetermined.
    """

    rows: Tensor
    of: Callable[[Tensor], Tensor] = lambda rows: rows.mean((-2, -1))
    seed_index: Tensor | None = None

    def value(self, num_seeds: int, num_resamples: int) -> Value:
        """The number with its interval."""
        rows, seed_index = self.rows.double(), self.seed_index
        parts = [] if seed_index is None else [rows[seed_index == index] for index in range(num_seeds)]
        by_seed = tuple(map(self._number, parts))
        if not len(rows):
            return Value(None, None, by_seed)
        interval = bootstrap_interval(rows, self.of, num_resamples, torch.Generator().manual_seed(0))
        is_finite = math.isfinite(interval.low) and math.isfinite(interval.high)
        return Value(self._number(rows), interval if is_finite else None, by_seed)

    def _number(self, rows: Tensor) -> float | None:
        number = float(self.of(rows)) if len(rows) else math.nan
        return number if math.isfinite(number) else None


@dataclass(frozen=True)
class Measure:
    """What is measured on samples.

    ``take(setting, batch, samples)`` runs in the process that made the batch and returns tensors by name; only these
    are gathered. ``values(setting, samples)`` then sees those of all batches, concatenated, with ``seed_index`` (N,).
    ``protocol``: what the values depend on, as plain values; ``caption``: what they are, for below a table;
    ``columns``: of values that :data:`fewstep.evaluation.rows.COLUMNS` lacks.
    """

    values: Callable[[Setting, Samples], Mapping[str, Value | Statistic]]
    take: Callable[[Setting, Batch, Samples], Mapping[str, Tensor]]
    protocol: Mapping[str, Any] = field(default_factory=dict)
    caption: str = ""
    columns: Mapping[str, Column] = field(default_factory=dict)


@dataclass(frozen=True)
class Plan:
    """What a sweep makes and measures: ``num_samples`` of every setting for each of ``seeds``.

    ``protocol`` holds what rows must have in common to compare, as plain values; samples, seeds and what the measures
    depend on are added. ``examples`` shows the first few samples as text. The statistics named in ``keep`` leave their
    samples' numbers in the row. Raises ``UserError`` where a setting comes twice.
    """

    groups: Sequence[Group]
    measures: Sequence[Measure]
    protocol: Mapping[str, Any]
    num_samples: int
    seeds: tuple[int, ...]
    model: str
    batch_size: int = 64
    device: str = "cpu"
    num_resamples: int = 1000
    examples: Callable[[Samples], Sequence[str]] | None = None
    keep: Collection[str] = ()
    provenance: dict[str, Any] | None = None
    caption: str = ""

    def __post_init__(self) -> None:
        seen: set[Key] = set()
        for setting in self.settings:
            if key_of(setting) in seen:
                raise UserError(f"the setting {label_of(setting)} comes twice: name each only once")
            seen.add(key_of(setting))

    @property
    def settings(self) -> list[Setting]:
        """All settings in their order."""
        return [setting for group in self.groups for setting in group.settings]

    @property
    def columns(self) -> dict[str, Column]:
        """Columns of a table of its rows."""
        return COLUMNS | {name: column for measure in self.measures for name, column in measure.columns.items()}

    @cached_property
    def full_protocol(self) -> dict[str, Any]:
        """Everything that rows must have in common."""
        measured = {name: value for measure in self.measures for name, value in measure.protocol.items()}
        values = {**self.protocol, **measured, "num_samples": self.num_samples, "seeds": self.seeds}
        return json.loads(canonical_json(values))

    @cached_property
    def protocol_hash(self) -> str:
        """The hash of :attr:`full_protocol`."""
        return hash_of(self.full_protocol)

    def batches(self, group: Group) -> list[Batch]:
        """All batches of ``group``, by seed and then by index."""
        count = group.num_samples or self.num_samples
        return [
            Batch(index, seed, first, min(self.batch_size, count - first), count)
            for index, seed in enumerate(self.seeds)
            for first in range(0, count, self.batch_size)
        ]


class Sweep:
    """Makes what ``plan`` says. Whole batches are shared between ``processes``, whose number changes no value."""

    def __init__(self, plan: Plan, processes: Processes | None = None) -> None:
        self.plan = plan
        self.processes = processes or Processes()

    def run(self, file: RowFile, progress: Progress | None = None, *, renew: bool = False) -> list[Row]:
        """Append what ``file`` lacks, row by row; returns all its rows, in the plan's order first.

        All processes must call it; the first alone writes. ``renew`` measures rows of another protocol or model again
        instead of refusing the file. Raises ``UserError``, in every process.
        """
        is_first = self.processes.is_first
        rows = self.processes.gather(self._finished(file, renew=renew) if is_first else ())
        place = {key_of(setting): index for index, setting in enumerate(self.plan.settings)}
        done = {row.key for row in rows}
        resumed, total = len(done & place.keys()), len(place)
        report = progress if progress is not None and is_first else lambda *_: None
        report(resumed, total, "resumed" if resumed else "")
        for count, row in enumerate(self.rows(done), resumed + 1):
            file.append(row)
            rows.append(row)
            report(count, total, label_of(row.setting))
        return sorted(rows, key=lambda row: place.get(row.key, total))

    def rows(self, done: Collection[Key] = ()) -> Iterator[Row]:
        """One row after the other, but for the keys that are ``done``. Only the first process yields any, and all
        processes must run through it."""
        for group in self.plan.groups:
            settings = [setting for setting in group.settings if key_of(setting) not in done]
            if not settings:
                continue
            gathered = self.processes.gather(self._taken(group, settings))
            gathered.sort(key=lambda part: (part[1].seed_index, part[1].first))
            for index, setting in enumerate(settings) if self.processes.is_first else ():
                yield self._row(group, setting, [part[1:] for part in gathered if part[0] == index])

    def _taken(self, group: Group, settings: Sequence[Setting]) -> Iterator[tuple[int, Batch, Samples]]:
        """This process's batches, with what the measures take from them."""
        share = self.processes.share(self.plan.batches(group))
        if share:  # warm up, so that the first row is not charged for it
            group.make(replace(share[0], count=1), settings)
        for batch in share:
            for index, (setting, samples) in enumerate(zip(settings, group.make(batch, settings), strict=True)):
                taken: dict[str, Tensor] = {}
                for measure in self.plan.measures:
                    taken |= measure.take(setting, batch, samples)
                yield index, batch, replace(samples, tensors=taken)

    def _row(self, group: Group, setting: Setting, parts: Sequence[tuple[Batch, Samples]]) -> Row:
        plan = self.plan
        samples = _joined(parts)
        measured: dict[str, Value | Statistic] = {name: Value(number) for name, number in samples.numbers.items()}
        for measure in plan.measures:
            measured |= measure.values(setting, samples)
        statistics = {name: value for name, value in measured.items() if isinstance(value, Statistic)}
        numbers = {name: value.value(len(plan.seeds), plan.num_resamples) for name, value in statistics.items()}
        kept = {name: value.rows.double().tolist() for name, value in statistics.items() if name in plan.keep}
        return Row(
            setting=dict(setting),
            values={name: value if isinstance(value, Value) else numbers[name] for name, value in measured.items()},
            num_samples=len(samples.tensors["seed_index"]),
            seeds=plan.seeds,
            model=group.model or plan.model,
            protocol_hash=plan.protocol_hash,
            protocol=plan.full_protocol,
            batch_size=plan.batch_size,
            device=plan.device,
            seconds=samples.seconds,
            examples=() if plan.examples is None else tuple(plan.examples(samples)),
            per_sample={name: tuple(map(tuple, rows)) for name, rows in kept.items()},
            provenance=plan.provenance,
        )

    def _finished(self, file: RowFile, *, renew: bool) -> Iterator[Row]:
        """The rows of the file, none where they are to be renewed."""
        rows = file.read()
        seen: set[Key] = set()
        for row in rows:
            if row.key in seen:
                raise UserError(f"{file.file} holds the row {label_of(row.setting)} twice: take one out by hand")
            seen.add(row.key)
        problem = next(filter(None, map(self._problem, rows)), None)
        if problem is None:
            yield from rows
        elif renew:
            file.file.unlink()
        else:
            raise UserError(f"{file.file} holds {problem}; give another --out")

    def _problem(self, row: Row) -> str | None:
        """Why a row of the file does not belong to the plan."""
        plan = self.plan
        if row.protocol_hash != plan.protocol_hash:
            differing = "; ".join(differences(row.protocol, plan.full_protocol)[:3])
            return (
                f"rows of scoring protocol {row.protocol_hash}, this is {plan.protocol_hash} ({differing}): their "
                "numbers do not compare"
            )
        for group in plan.groups:
            expected = group.model or plan.model
            if row.setting in group.settings and row.model != expected:
                return f"rows of another model ({row.model}, this is {expected})"
        return None


def _joined(parts: Sequence[tuple[Batch, Samples]]) -> Samples:
    """All batches of a setting as one, with ``seed_index``."""
    batches, each = zip(*parts, strict=True)
    names = dict.fromkeys(name for samples in each for name in samples.tensors)
    tensors = {name: torch.cat([part.tensors[name] for part in each if name in part.tensors]) for name in names}
    tensors["seed_index"] = torch.cat([torch.full((batch.count,), batch.seed_index) for batch in batches])
    seconds = [part.seconds for part in each if part.seconds is not None]
    return Samples(tensors, sum(seconds) if seconds else None, each[0].numbers)


def model_digest(bundle: SavedModel) -> str:
    """12 hex digits of a model's identity, architectures and weights."""
    weights = {name: weights_digest(part) for name, part in bundle.parts().items()}
    return hash_of([asdict(bundle.manifest()), weights])
