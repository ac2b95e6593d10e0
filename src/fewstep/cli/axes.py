"""What a sweep goes through: the lists of ``fewstep evaluate``, read and checked before a model is."""

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING

from fewstep.cli.arguments import comma_numbers, comma_parts
from fewstep.errors import UserError

if TYPE_CHECKING:
    from fewstep.evaluation.sweep_row import Setting


@dataclass(frozen=True)
class Axes:
    """The values of each axis, in their order. Rules of ``reinjections`` and ``snaps`` are as a row names them."""

    steps: tuple[int, ...]
    reinjections: tuple[str, ...]
    readouts: tuple[str, ...]
    noise_temperatures: tuple[float, ...]
    initial_temperatures: tuple[float, ...]
    noises: tuple[str, ...]
    snaps: tuple[str, ...]

    def samplers(self) -> "Iterator[Setting]":
        """Every way from noise to latents, the number of steps changing fastest."""
        from fewstep.evaluation.sweep_texts import flow_setting

        for rule, cold, start, noise, snap, num_steps in product(
            self.reinjections,
            self.noise_temperatures,
            self.initial_temperatures,
            self.noises,
            self.snaps,
            self.steps,
        ):
            yield flow_setting(num_steps, rule, cold, initial_temperature=start, noise=noise, snap=snap)


def add_axes(parser: argparse.ArgumentParser) -> None:
    """The options whose values are lists."""
    parser.add_argument("--steps", default="1,2,4,8,16,32", help="numbers with commas between (default: %(default)s)")
    parser.add_argument(
        "--reinjection",
        nargs="+",
        default=["0,0.5,1"],
        metavar="RULE",
        help="strengths with commas between, and rules as in fewstep sample, such as linear:1,0.2, with blanks between "
        "(default: 0,0.5,1)",
    )
    parser.add_argument(
        "--readout",
        default="parallel,head",
        help="some of parallel, head, head_off (the head cut off from its tokens) (default: %(default)s)",
    )
    parser.add_argument(
        "--noise_temperature", default="1", help="factors on a step's old noise; below 1 is colder (default: 1)"
    )
    parser.add_argument(
        "--initial_temperature", default="1", help="factors on the noise that sampling starts from (default: 1)"
    )
    parser.add_argument(
        "--noise",
        default="fresh",
        help="some of fresh, reused: re-injected noise drawn in every step, or once (default: fresh)",
    )
    parser.add_argument(
        "--snap",
        default="none",
        help="none and rules as in fewstep sample with commas between, such as none,every,last:2 (default: none)",
    )


def axes_of(args: argparse.Namespace) -> Axes:
    """What the options say. Raises ``UserError`` for a value that is none, before a model is read."""
    from fewstep.evaluation.sweep_row import FRESH, NO_SNAP, REUSED
    from fewstep.samplers import parse_rule, parse_snap

    axes = Axes(
        steps=tuple(comma_numbers(args.steps, "steps", int)),
        reinjections=tuple(written_rules(args.reinjection)),
        readouts=tuple(comma_parts(args.readout, "readout")),
        noise_temperatures=tuple(comma_numbers(args.noise_temperature, "noise_temperature", float)),
        initial_temperatures=tuple(comma_numbers(args.initial_temperature, "initial_temperature", float)),
        noises=tuple(comma_parts(args.noise, "noise")),
        snaps=tuple(comma_parts(args.snap, "snap")),
    )
    if min(axes.steps) < 1:
        raise UserError(f"--steps {args.steps!r}: expected whole numbers of at least 1")
    for noise in axes.noises:
        if noise not in (FRESH, REUSED):
            raise UserError(f"noise is {noise!r}: expected some of {FRESH}, {REUSED}")
    try:
        for rule in axes.reinjections:
            parse_rule(rule)
        for snap in axes.snaps:
            if snap != NO_SNAP:
                parse_snap(snap)
    except ValueError as error:
        raise UserError(str(error)) from None
    return axes


def written_rules(given: Sequence[str]) -> list[str]:
    """The rules of re-injection as a row names them: numbers in their shortest form, the others as written.

    An argument without a colon is a list with commas; one with a colon is one rule, whose numbers have commas.
    """
    rules = []
    for argument in given:
        for text in [argument.strip()] if ":" in argument else comma_parts(argument, "reinjection"):
            rules.append(_shortest(text) or text)
    return rules


def _shortest(text: str) -> str:
    """A number in its shortest form, "" where ``text`` is none."""
    try:
        return f"{float(text):g}"
    except ValueError:
        return ""
