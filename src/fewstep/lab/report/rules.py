"""What a rule of the verdict is."""

from collections.abc import Callable
from dataclasses import dataclass

from fewstep.evaluation.measurement import Threshold
from fewstep.lab.report.evidence import Evidence
from fewstep.lab.report.thresholds import State, threshold_text

DIAGNOSE, EVALUATE = "fewstep diagnose RUN/model", "fewstep evaluate RUN/model"


@dataclass(frozen=True)
class Outcome:
    """What a rule says of one run: ``state``, the ``figure`` that it read, what was found, and what to try ("" where
    nothing needs trying)."""

    state: State
    figure: str
    finding: str
    advice: str = ""


@dataclass(frozen=True)
class Rule:
    """One question of the verdict.

    ``key`` is its name on the page. ``threshold`` is what the figure is held against. ``judge`` gives the outcome, None
    where the run lacks the figures; ``command`` would measure them, and ``measurement`` is their name in ``fewstep
    diagnose``, "" where they come from elsewhere. ``kinds`` of models that the question can be put to. ``reads`` names
    the figures or curves of a diagnosis that it reads, none where it reads scores of samples. ``of_decoder`` is
    true for a question that a decoder without a flow can answer.
    """

    key: str
    question: str
    threshold: Threshold
    judge: Callable[[Evidence], Outcome | None]
    command: str
    measurement: str = ""
    kinds: tuple[str, ...] = ("text",)
    reads: tuple[str, ...] = ()
    of_decoder: bool = False

    @property
    def threshold_text(self) -> str:
        """The threshold in words."""
        return threshold_text(self.threshold)


def without_measurement(rule: Rule, evidence: Evidence) -> Outcome:
    """The outcome where a rule has nothing to go by: how to get it, or why it cannot be had."""
    for diagnosed in evidence.run.diagnoses:
        if rule.measurement in diagnosed.left_out:
            parts = diagnosed.left_out[rule.measurement]
            return Outcome("not measured", "–", f"Cannot be measured: the model has no {parts}.")
    if not evidence.run.is_decoder_alone:
        return Outcome("not measured", "–", "This run does not hold the figures.", f"To measure it: {rule.command}")
    if rule.of_decoder:
        advice = f"To measure it: the same diagnosis with {rule.measurement} among --only, or without --only."
        return Outcome("not measured", "–", "This diagnosis does not hold the figures.", advice)
    finding = "A decoder by itself goes no way and makes no samples."
    return Outcome("not measured", "–", finding, "Where it belongs to a run, give the run's folder.")


def source_of(rule: Rule, evidence: Evidence) -> str:
    """Where a rule's figures come from, in words; "" where that is not told."""
    for name in rule.reads:
        told = evidence.told_by(name)
        if told is not None:
            return told.origin + (f", {told.num_examples} examples" if told.num_examples else "")
    return "" if rule.reads and not evidence.sampled else evidence.scored_by()
