"""The verdict: the rules of page/rules.toml, each a question with its figure, threshold and sentences, put to a run."""

import re
import tomllib
from dataclasses import asdict, dataclass
from importlib.resources import files
from typing import Literal

from pydantic import TypeAdapter

from fewstep.evaluation.columns import aligned_columns
from fewstep.evaluation.measurement import Threshold
from fewstep.evaluation.measurements import MEASUREMENTS
from fewstep.lab.report.figures import NOTHING, Figure, figures_of, percent, rounded, scored_by
from fewstep.lab.report.run import Run

State = Literal["bad", "look", "good", "not measured"]
STATES: tuple[State, ...] = ("bad", "look", "good", "not measured")
"""In the order in which they matter."""


@dataclass(frozen=True)
class Reservation:
    """Where the figure ``flag`` is known, ``instead_of`` becomes "look", ``sentence`` says why, and ``advice``, if not
    empty, takes the place of the rule's."""

    flag: str
    instead_of: State
    sentence: str
    advice: str = ""


@dataclass(frozen=True)
class Rule:
    """One question of the verdict.

    ``key`` is its name on the page. The first of the figures ``reads`` that a run has is held against ``threshold``.
    Templates: ``shown`` beside the state; ``finding``, full sentences, of which those are kept whose figures are all
    known; ``advice`` where the state is not good. In a template ``{value}`` is the figure that was read, and after a
    colon "%" is per cent. The figures come from the ``measurement`` of ``fewstep diagnose``, or else from
    ``fewstep evaluate`` with the options ``evaluation``.
    """

    key: str
    question: str
    reads: tuple[str, ...]
    threshold: Threshold
    finding: tuple[str, ...]
    advice: str
    measurement: str = ""
    evaluation: str = ""
    reservations: tuple[Reservation, ...] = ()
    kinds: tuple[str, ...] = ("text",)
    shown: str = ""


@dataclass(frozen=True)
class Finding:
    """What ``rule`` says of a run: ``state``, the ``figure`` beside it, sentences, ``advice`` ("" for none), and the
    ``source`` of the figure."""

    rule: Rule
    state: State
    figure: str
    text: str
    advice: str = ""
    source: str = ""


@dataclass(frozen=True)
class Verdict:
    """The findings on the run called ``name`` in the order of :data:`RULES`, those for its kind of model."""

    name: str
    findings: tuple[Finding, ...]

    def count(self, state: State) -> int:
        """Findings of that state."""
        return sum(finding.state == state for finding in self.findings)

    def of(self, key: str) -> Finding | None:
        """The finding of a rule by its key."""
        return next((finding for finding in self.findings if finding.rule.key == key), None)

    @property
    def urgent(self) -> list[Finding]:
        """The bad findings in the order of the way from text to samples, then those to look at."""
        return [item for state in STATES[:2] for item in self.findings if item.state == state]

    def to_text(self) -> str:
        """For a terminal: a line per rule, then sentences and advice on what is not good."""
        lines: list[tuple[str, ...]] = [("state", "question", "figure", "threshold")]
        for item in self.findings:
            lines.append((item.state, item.rule.question, item.figure, threshold_text(item.rule.threshold)))
        counts = ", ".join(f"{self.count(state)} {state}" for state in STATES)
        notes = [f"- {item.text} {item.advice}" for item in self.urgent]
        return "\n".join([f"{self.name}: {counts}", aligned_columns(lines, (0, 1, 3)), *notes])


def threshold_text(threshold: Threshold) -> str:
    """A threshold in words."""
    good, bad = map(percent if threshold.shares else rounded, (threshold.good, threshold.bad))
    words = f"good from {good}, bad below {bad}" if threshold.higher else f"good up to {good}, bad above {bad}"
    return f"{threshold.reads}: {words}"


def _sentence(template: str, figures: dict[str, Figure]) -> str:
    """``template`` with its figures, written as the report writes numbers; "" where one of them is unknown."""

    def written(field: re.Match[str]) -> str:
        value = figures[field[1]]
        return value if isinstance(value, str) else percent(value) if field[2] else rounded(value)

    try:
        return re.sub(r"{([^:}]+)(:%)?}", written, template)
    except KeyError:
        return ""


def judge(run: Run) -> Verdict:
    """Put every rule that fits the run's kind to it."""
    figures = figures_of(run)
    return Verdict(run.name, tuple(_finding(rule, run, figures) for rule in RULES if run.kind in rule.kinds))


def _finding(rule: Rule, run: Run, figures: dict[str, Figure]) -> Finding:
    name = next((name for name in rule.reads if name in figures), None)
    if name is None:
        return _not_measured(rule, run)
    value = float(figures[name])
    known = {**figures, "value": value}
    state: State = rule.threshold.state(value)
    sentences, advice = [_sentence(template, known) for template in rule.finding], rule.advice
    for reservation in rule.reservations:
        if reservation.flag in known and state in (reservation.instead_of, "look"):
            state = "look"
            sentences.append(_sentence(reservation.sentence, known))
            advice = reservation.advice or advice
    shown = rule.shown or ("{value:%}" if rule.threshold.shares else "{value}")
    text = " ".join(filter(None, sentences))
    diagnosed = f"fewstep diagnose, {run.diagnosis.num_examples} examples" if run.diagnosis else ""
    source = diagnosed if rule.measurement else scored_by(run)
    return Finding(rule, state, _sentence(shown, known), text, "" if state == "good" else advice, source)


def _not_measured(rule: Rule, run: Run) -> Finding:
    left_out = run.diagnosis.left_out if run.diagnosis else {}
    if missing := [left_out[name] for name in rule.measurement.split(",") if name in left_out]:
        return Finding(rule, "not measured", NOTHING, f"This cannot be measured: the model has no {missing[0]}.")
    by, options = ("diagnose", f"--only {rule.measurement}") if rule.measurement else ("evaluate", rule.evaluation)
    advice = f"To measure it: fewstep {by} RUN/model {options}".rstrip()
    return Finding(rule, "not measured", NOTHING, "This run does not hold the figures.", advice)


def _read_rules() -> tuple[Rule, ...]:
    values = tomllib.loads((files("fewstep.lab.report") / "page" / "rules.toml").read_text("utf-8"))
    rules = []
    for key, rule in values["rule"].items():
        measurement, _, row = rule["threshold"].partition("/")
        if row:  # declared with the measurement
            rule = {"reads": [row], "measurement": measurement, **rule}
            threshold = asdict(MEASUREMENTS[measurement].thresholds[row])
        else:
            threshold = values["threshold"][measurement]
        rules.append({**rule, "key": key, "threshold": threshold})
    return TypeAdapter(tuple[Rule, ...]).validate_python(tuple(rules))


RULES = _read_rules()
