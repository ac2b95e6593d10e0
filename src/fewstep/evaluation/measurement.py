"""What a measurement of ``fewstep diagnose`` declares about itself, ours or a user's."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from fewstep.diagnostics.result import Result
from fewstep.errors import UserError
from fewstep.evaluation.subject import MIN_EXAMPLES, Subject
from fewstep.registry import resolve

State = Literal["good", "look", "bad"]
EffortName = Literal["training", "default", "full"]


@dataclass(frozen=True)
class Threshold:
    """Where a figure stops being good, and where it is bad; between them it is worth a look.

    ``reads`` names the figure in words, ``higher`` says whether higher is better, ``shares`` whether it is written in
    per cent, and ``why`` where both numbers come from.
    """

    reads: str
    good: float
    bad: float
    higher: bool
    why: str = ""
    shares: bool = False

    def state(self, value: float) -> State:
        """Good at ``good`` itself and better; bad where it is worse than ``bad``."""
        sign = 1 if self.higher else -1
        if sign * value >= sign * self.good:
            return "good"
        return "bad" if sign * value < sign * self.bad else "look"


@dataclass(frozen=True)
class Effort:
    """How much a measurement looks at: the first 1 / ``share`` of the examples (at least two), the first ``positions``
    tokens of each (None: all), and ``options`` as keyword arguments."""

    share: int = 1
    positions: int | None = None
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Measurement:
    """One question put to a model.

    ``measure`` takes a :class:`~fewstep.evaluation.subject.Subject` and returns one ``Result`` or a tuple of them;
    everything random in it comes from ``subject.noise(name)``. ``parts`` of the model are needed, and a subject of
    ``kind`` (None: of any). ``stages`` are the training stages whose diagnostics callback runs it, with the effort
    ``training``; ``default`` is that of ``fewstep diagnose``, and ``--effort full`` looks at the whole subject.
    ``thresholds`` are by the names of rows, or of a figure that the report computes from rows. A plain function stands
    for a measurement without any of these.
    """

    measure: Callable[..., Result | tuple[Result, ...]]
    parts: tuple[str, ...] = ()
    kind: Literal["text", "images"] | None = None
    stages: tuple[str, ...] = ()
    training: Effort = Effort()
    default: Effort = Effort()
    thresholds: Mapping[str, Threshold] = field(default_factory=dict)

    def run(self, subject: Subject, effort: EffortName = "full") -> tuple[Result, ...]:
        """The results at an effort. Raises ``UserError`` where the function gives something else."""
        size = {"training": self.training, "default": self.default, "full": Effort()}[effort]
        num_examples = max(MIN_EXAMPLES, len(subject.z) // size.share)
        returned = self.measure(subject.first(num_examples, size.positions), **size.options)
        results = returned if isinstance(returned, tuple) else (returned,)
        for result in results:
            if not isinstance(result, Result):
                raise UserError(f"a measurement returned {result!r}: expected a Result, or a tuple of them")
        return results


def choose(offered: Mapping[str, Measurement], only: Sequence[str] | None) -> dict[str, Measurement]:
    """The measurements called ``only``, those of ``offered`` first and in its order; all of them for None.

    A dotted path ``package.module.name`` imports a measurement, or a function, from outside the package. Raises
    ``UserError`` for an unknown name, and for what is neither.
    """
    if only is None:
        return dict(offered)
    chosen = {name: item for name, item in offered.items() if name in only}
    for name in only:
        if name not in chosen:
            item = resolve(offered, name, "measurement")
            if not callable(item) and not isinstance(item, Measurement):
                raise UserError(f"measurement {name!r} is {item!r}: expected a Measurement, or a function of a subject")
            chosen[name] = item if isinstance(item, Measurement) else Measurement(item)
    return chosen
