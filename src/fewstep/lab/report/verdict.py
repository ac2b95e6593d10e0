"""The verdict on a run: every rule's question with its answer, and what to begin with."""

from collections.abc import Sequence
from dataclasses import dataclass

from fewstep.evaluation.columns import aligned_columns
from fewstep.lab.report.evidence import Evidence
from fewstep.lab.report.rules import Outcome, Rule, source_of, without_measurement
from fewstep.lab.report.rules_readout import READOUT_RULES
from fewstep.lab.report.rules_samples import SAMPLE_RULES
from fewstep.lab.report.run_folder import RunReport
from fewstep.lab.report.thresholds import STATES, State

RULES: tuple[Rule, ...] = (*READOUT_RULES, *SAMPLE_RULES)
"""In the order of the way from text to samples: what comes first is mended first."""


@dataclass(frozen=True)
class Finding:
    """A rule and its outcome; ``source`` says where the figures are from."""

    rule: Rule
    outcome: Outcome
    source: str = ""


@dataclass(frozen=True)
class Verdict:
    """The findings on the run called ``name``, in the order of :data:`RULES`; questions that make no sense for its kind
    are left out."""

    name: str
    findings: tuple[Finding, ...]

    def count(self, state: State) -> int:
        """Findings of that state."""
        return sum(finding.outcome.state == state for finding in self.findings)

    def of(self, key: str) -> Finding | None:
        """The finding of a rule by its key."""
        return next((finding for finding in self.findings if finding.rule.key == key), None)

    def begin_with(self) -> Finding | None:
        """The first bad finding on the way from text to samples, else the first to look at."""
        for state in ("bad", "look"):
            for finding in self.findings:
                if finding.outcome.state == state and finding.outcome.advice:
                    return finding
        return None

    def summary(self) -> str:
        """How many findings of each state."""
        words = {"bad": "bad", "look": "to look at", "good": "good", "not measured": "not measured"}
        return ", ".join(f"{self.count(state)} {words[state]}" for state in STATES)


def judge(run: RunReport, rules: Sequence[Rule] = RULES) -> Verdict:
    """Put every rule that fits the run's kind to it."""
    evidence = Evidence(run)
    found = []
    for rule in rules:
        if run.kind in rule.kinds:
            outcome = rule.judge(evidence)
            source = "" if outcome is None else source_of(rule, evidence)
            found.append(Finding(rule, outcome or without_measurement(rule, evidence), source))
    return Verdict(run.name, tuple(found))


def verdict_text(verdict: Verdict) -> str:
    """For a terminal: a line a rule, then findings and advice of what is not good."""
    lines: list[tuple[str, ...]] = [("state", "question", "figure", "threshold")]
    for finding in verdict.findings:
        outcome, rule = finding.outcome, finding.rule
        lines.append((outcome.state, rule.question, outcome.figure, rule.threshold_text))
    told = [
        f"- {' '.join(part for part in (one.outcome.finding, one.outcome.advice) if part)}"
        for state in ("bad", "look")
        for one in verdict.findings
        if one.outcome.state == state
    ]
    return "\n".join([f"{verdict.name}: {verdict.summary()}", aligned_columns(lines, (0, 1, 3)), *told])
