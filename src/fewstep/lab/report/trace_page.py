"""The viewer of traces: a fragment of a page, complete in itself with its style, script and data."""

import json
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from markupsafe import Markup

from fewstep.lab.report.page_files import code_sign, inlined, template
from fewstep.lab.report.trace_plan import Way
from fewstep.lab.report.traces import Traces

BOUNDS = (0.1, 0.25, 0.5, 1.0)
"""Where one colour ends and the next begins, rms (this project's choice). Generated tokens lie at some tenths, data at
about 1: between them each colour is about a factor of two."""


@dataclass(frozen=True)
class WayWords:
    """What a way is called on the page, and what a reader should know of it."""

    label: str
    note: str


WAYS: dict[Way, WayWords] = {
    "deterministic": WayWords("deterministic", "No noise is added on the way; the parallel readout reads each latent."),
    "reinjection": WayWords(
        "re-injection", "Each step but the last replaces noise by fresh noise; the parallel readout reads each latent."
    ),
    "commitment": WayWords(
        "commitment head",
        "Made without re-injection where the model allows it. The head draws each token after those before it, at "
        "every step with the same random numbers, so that one early change moves all that follow. Its distances are "
        "those of its likeliest token, given the tokens that it drew before.",
    ),
}


@dataclass(frozen=True)
class FinalText:
    """One line of the table that is shown where no script runs; ``sample`` is counted from 1."""

    sample: int
    way: str
    num_steps: int
    text: str


@dataclass(frozen=True)
class _Run:
    name: str
    finals: tuple[FinalText, ...]


def trace_fragment(traces: Sequence[Traces], names: Sequence[str] | None = None) -> Markup:
    """HTML of the viewer for the traces of one or more runs, called ``names`` ("run 1" and so on where they are None).

    It asks for nothing over the network, brings no heading, and its ids all begin with ``trace``: a page holds it once.
    Light and dark follow the ``color-scheme`` of what surrounds it. Every text is escaped, control characters
    are made visible. The result is :class:`markupsafe.Markup`, a ``str`` that a template inserts as it is. Raises
    ``ValueError`` for no traces, or another number of names.
    """
    names = [f"run {number}" for number in range(1, len(traces) + 1)] if names is None else names
    if not traces or len(names) != len(traces):
        raise ValueError(f"{len(traces)} traces with {len(names)} names: expected at least one, and a name each.")
    shown = [replace(one, vocabulary=tuple(map(visible, one.vocabulary))) for one in traces]
    data = {
        "runs": [{"name": name, "traces": one.to_dict()} for name, one in zip(names, shown, strict=True)],
        "bounds": BOUNDS,
        "ways": [[way, words.label, words.note] for way, words in WAYS.items()],
    }
    runs = [_Run(name, tuple(final_texts(one))) for name, one in zip(names, shown, strict=True)]
    css, js = (inlined(f"trace.{kind}") for kind in ("css", "js"))
    text = template("trace.html.j2").render(css=css, js=js, runs=runs, labels=labels(), traces_json=script_json(data))
    return Markup(text)


def final_texts(traces: Traces) -> Iterator[FinalText]:
    """The texts at the ends, sample by sample."""
    for number in range(traces.num_samples):
        for path in traces.paths:
            last = path.samples[number].tokens[-1]
            text = "".join(traces.vocabulary[index] for index in last)
            yield FinalText(number + 1, WAYS[path.way].label, path.num_steps, text)


def labels() -> tuple[str, ...]:
    """What the colours mean, from the closest on."""
    between = (f"{low:g} to {high:g}" for low, high in pairwise(BOUNDS))
    return (f"under {BOUNDS[0]:g}", *between, f"{BOUNDS[-1]:g} and more")


def visible(text: str) -> str:
    """``text`` with an arrow for each new line, and its code for each character that has no looks of its own or would
    turn others around."""
    return "".join(_sign(character) for character in text)


def _sign(character: str) -> str:
    if unicodedata.category(character) not in ("Cc", "Cf", "Cs", "Zl", "Zp"):
        return character
    return "↵" if character == "\n" else code_sign(character)


def script_json(value: object) -> Markup:
    """Compact JSON that may stand within a ``<script>`` element: nothing in it can end the element or a line."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)
