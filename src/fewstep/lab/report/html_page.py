"""The page: one HTML file that asks for nothing over the network."""

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

from fewstep import __version__
from fewstep.lab.report.blocks import Section
from fewstep.lab.report.evidence import Evidence
from fewstep.lab.report.page_files import code_sign, inlined, template
from fewstep.lab.report.rules import Rule
from fewstep.lab.report.run_folder import RunReport
from fewstep.lab.report.sections import sections
from fewstep.lab.report.thresholds import STATES
from fewstep.lab.report.trace_page import trace_fragment
from fewstep.lab.report.traces import Traces
from fewstep.lab.report.verdict import RULES, Finding, Verdict, judge
from fewstep.lab.report.way import provenance, stations

SIGNS = {"bad": "✕", "look": "!", "good": "✓", "not measured": "–"}
"""What says a state beside its colour and its word."""
TURNS_TEXT_AROUND = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


@dataclass(frozen=True)
class Report:
    """All that a page shows: ``runs`` with their ``verdicts``, the ``sections``, and ``traces`` by the runs' names."""

    title: str
    runs: tuple[RunReport, ...]
    verdicts: tuple[Verdict, ...]
    sections: tuple[Section, ...]
    traces: tuple[tuple[str, Traces], ...] = ()


@dataclass(frozen=True)
class Question:
    """A rule with what was found on each run it was put to: its name and finding (None where it makes no sense)."""

    rule: Rule
    answers: tuple[tuple[str, Finding | None], ...]


def make_report(
    runs: Sequence[RunReport], *, title: str | None = None, traces: dict[str, Traces] | None = None
) -> Report:
    """Judge ``runs`` and draw their pictures. ``traces`` are by the runs' names. Raises ``ValueError`` for no run."""
    if not runs:
        raise ValueError("no run: expected at least one")
    evidences = [Evidence(run) for run in runs]
    return Report(
        title=title or f"Few-step report: {', '.join(run.name for run in runs)}",
        runs=tuple(runs),
        verdicts=tuple(judge(run) for run in runs),
        sections=sections(evidences),
        traces=tuple((traces or {}).items()),
    )


def page_html(report: Report) -> str:
    """The whole page. The same report gives the same bytes."""
    evidences = [Evidence(run) for run in report.runs]
    names = [name for name, _ in report.traces]
    viewer = trace_fragment([traces for _, traces in report.traces], names) if report.traces else None
    css, js = (inlined(f"page.{kind}") for kind in ("css", "js"))
    text = template("page.html.j2").render(
        report=report,
        questions=questions(report.verdicts),
        stations=stations(evidences),
        provenance=provenance(evidences),
        states=STATES,
        signs=SIGNS,
        viewer=viewer,
        css=css,
        js=js,
        version=__version__,
    )
    return harmless(text)


def questions(verdicts: Sequence[Verdict]) -> list[Question]:
    """Every rule that was put to some run."""
    found = [Question(rule, tuple((one.name, one.of(rule.key)) for one in verdicts)) for rule in RULES]
    return [one for one in found if any(finding is not None for _, finding in one.answers)]


def harmless(text: str) -> str:
    """``text`` with codes in place of characters that would vanish, break the file, or turn other text around."""
    return "".join(code_sign(letter) if _is_harmful(letter) else letter for letter in text)


def _is_harmful(letter: str) -> bool:
    if letter in "\n\t":
        return False
    return unicodedata.category(letter) in ("Cc", "Cs") or letter in TURNS_TEXT_AROUND
