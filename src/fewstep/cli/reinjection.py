"""Re-injection on the command line: a number, or the name of a rule with its numbers. Imports torch."""

import inspect
from collections.abc import Callable
from functools import partial

from fewstep.errors import UserError
from fewstep.samplers import (
    AncestralReinjection,
    ChurnReinjection,
    CommitmentReinjection,
    ConstantReinjection,
    CosineReinjection,
    Decided,
    ElfReinjection,
    FreshNoise,
    LinearReinjection,
    ListedReinjection,
    MatchedCooling,
    NoiseSource,
    Reinjection,
    ReusedNoise,
    WindowReinjection,
    early_reinjection,
    late_reinjection,
)

Rule = Callable[..., Reinjection]
"""Makes a rule from the numbers behind its name."""

NOISES: dict[str, Callable[[], NoiseSource]] = {"fresh": FreshNoise, "reused": ReusedNoise}


def _listed(*gammas: float) -> Reinjection:
    return ListedReinjection(gammas)


def _window(gamma: float, begin: float, end: float) -> Reinjection:
    return WindowReinjection(gamma, begin, end)


def _commitment(decided: Decided, strength: float = 1.0) -> Reinjection:
    return CommitmentReinjection(decided, strength)


def _elf_cooling(gamma: float = 1.5) -> Reinjection:
    return MatchedCooling(ElfReinjection(gamma))


def rules(decided: Decided) -> dict[str, Rule]:
    """The rules by name; ``decided`` tells how decided a position is, for the one that asks."""
    return {
        "constant": ConstantReinjection,
        "listed": _listed,
        "linear": LinearReinjection,
        "cosine": CosineReinjection,
        "early": early_reinjection,
        "late": late_reinjection,
        "window": _window,
        "ancestral": AncestralReinjection,
        "churn": ChurnReinjection,
        "commitment": partial(_commitment, decided),
        "elf": ElfReinjection,
        "elf_cooling": _elf_cooling,
    }


def parse_reinjection(text: str, decided: Decided) -> Reinjection:
    """The rule that ``text`` names: a strength as in "0.5", NAME, or NAME:NUMBER,NUMBER as in "linear:1,0.2".

    ``decided`` is only kept here, not called. Raises ``UserError`` for an unknown name, too many or too few numbers,
    and numbers out of range.
    """
    known = rules(decided)
    name, colon, rest = text.partition(":")
    if name not in known and not colon:
        name, colon, rest = "constant", ":", text
    numbers = _numbers(rest) if colon else []
    if name not in known or numbers is None:
        raise UserError(
            f"reinjection is {text!r}: expected a strength from 0 to 1, or NAME or NAME:NUMBER,NUMBER with one of "
            + ", ".join(known)
        )
    signature = inspect.signature(known[name])
    try:
        signature.bind(*numbers)
    except TypeError:
        wanted = ", ".join(map(_usage, signature.parameters.values()))
        raise UserError(f"reinjection is {text!r}: {name} does not take {len(numbers)} numbers but {wanted}") from None
    try:
        return known[name](*numbers)
    except ValueError as error:
        raise UserError(f"reinjection is {text!r}: {error}") from None


def _numbers(text: str) -> list[float] | None:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        return None


def _usage(parameter: inspect.Parameter) -> str:
    optional = parameter.default is not inspect.Parameter.empty
    return f"{parameter.name} (left out: {parameter.default:g})" if optional else parameter.name
