"""What a measurement of ``fewstep diagnose`` declares about itself, ours or a user's."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from fewstep.diagnostics.result import Result
from fewstep.errors import UserError
from fewstep.registry import resolve

State = Literal["good", "look", "bad"]
MIN_EXAMPLES = 2
"""One example has no interval."""


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
class Brief:
    """The cheap version of a measurement that runs after each validation of a training stage.

    It gets the first 1 / ``share`` of the examples (at least two), the first ``positions`` tokens of each (None: all),
    and ``options`` as keyword arguments.
    """

    share: int = 1
    positions: int | None = None
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Measurement:
    """One question put to a model.

    ``measure`` takes a :class:`~fewstep.evaluation.subject.Subject` and returns one ``Result`` or a tuple of them;
    everything random in it comes from ``subject.noise(name)``. ``parts`` of the model are needed; ``stages`` are the
    training stages whose diagnostics callback runs it, as ``brief`` says. ``thresholds`` are by the names of rows, or
    of a figure that the report computes from rows. A plain function stands for a measurement without any of these.
    """

    measure: Callable[..., Result | tuple[Result, ...]]
    parts: tuple[str, ...] = ()
    stages: tuple[str, ...] = ()
    brief: Brief = Brief()
    thresholds: Mapping[str, Threshold] = field(default_factory=dict)

    def run(self, subject: Any) -> tuple[Result, ...]:
        """The results at full effort."""
        return _results(self.measure(subject))

    def run_brief(self, subject: Any) -> tuple[Result, ...]:
        """The results at the effort of training."""
        few = subject.first(max(MIN_EXAMPLES, len(subject.z) // self.brief.share), self.brief.positions)
        return _results(self.measure(few, **self.brief.options))


def choose(offered: Mapping[str, Measurement], only: Sequence[str] | None) -> dict[str, Measurement]:
    """The measurements called ``only``, those of ``offered`` first and in its order; all of them for None.

    A dotted path ``package.module.name`` imports a measurement, or a function, from outside the package. Raises
    ``UserError`` for an unknown name.
    """
    if only is None:
        return dict(offered)
    chosen = {name: item for name, item in offered.items() if name in only}
    for name in only:
        if name not in chosen:
            chosen[name] = as_measurement(resolve(offered, name, "measurement"), name)
    return chosen


def as_measurement(item: object, name: str) -> Measurement:
    """``item`` itself, or a function as a measurement. Raises ``UserError`` for anything else."""
    if isinstance(item, Measurement):
        return item
    if callable(item):
        return Measurement(item)
    raise UserError(f"measurement {name!r} is {item!r}: expected a Measurement, or a function of a subject")


def _results(returned: object) -> tuple[Result, ...]:
    results = returned if isinstance(returned, tuple) else (returned,)
    for result in results:
        if not isinstance(result, Result):
            raise UserError(f"a measurement returned {result!r}: expected a Result, or a tuple of them")
    return results
