"""Commitment inside the loop on the command line: ``snap``, or ``snap:RULE,NUMBER``. Imports torch."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from fewstep.errors import UserError
from fewstep.samplers import ConfidenceRule, DistanceRule, SnapRule, SnapSteps, every_step, last_steps


@dataclass(frozen=True)
class CommitChoice:
    """At which ``steps`` estimates snap to tokens, and by which ``rule`` where; None snaps everywhere."""

    steps: SnapSteps = every_step
    rule: SnapRule | None = None


def _confidence(threshold: float) -> CommitChoice:
    return CommitChoice(rule=ConfidenceRule(threshold))


def _distance(threshold: float) -> CommitChoice:
    return CommitChoice(rule=DistanceRule(threshold))


def _last(count: float) -> CommitChoice:
    if not math.isfinite(count) or count % 1:
        raise ValueError(f"{count:g} last steps to snap at: expected a whole number of at least 1.")
    return CommitChoice(steps=last_steps(int(count)))


RULES: dict[str, Callable[[float], CommitChoice]] = {"confidence": _confidence, "distance": _distance, "last": _last}


def parse_commit(text: str) -> CommitChoice:
    """What ``text`` asks for: "snap" (all positions at all steps), "snap:confidence,P" (positions whose tokens all have
    a probability above P), "snap:distance,D" (whose decision boundary is farther than D), or "snap:last,N" (all
    positions at the last N steps). Raises ``UserError`` for anything else."""
    name, colon, rest = text.partition(":")
    rule, comma, number = rest.partition(",")
    if name == "snap" and not colon:
        return CommitChoice()
    if name != "snap" or rule not in RULES or not comma:
        raise UserError(
            f"commit is {text!r}: expected snap, or snap:RULE,NUMBER with a rule of {', '.join(RULES)} "
            "(as in snap:confidence,0.9)"
        )
    try:
        value = float(number)
    except ValueError:
        raise UserError(f"commit is {text!r}: {number!r} is no number") from None
    if math.isnan(value):
        raise UserError(f"commit is {text!r}: expected a number")
    try:
        return RULES[rule](value)
    except ValueError as error:
        raise UserError(f"commit is {text!r}: {error}") from None
