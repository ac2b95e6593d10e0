"""The page: one HTML file that requests nothing over the network, from one template."""

import json
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.resources import files
from itertools import pairwise
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from fewstep import __version__
from fewstep.diagnostics.result import Picture, Row, Series
from fewstep.evaluation.charts import ENTROPY_BAND_NATS, NFE, SECONDS, YARDSTICKS, score_pictures
from fewstep.evaluation.rows import HELD_OUT, label_of, table_lines
from fewstep.lab.report.charts import Chart, chart
from fewstep.lab.report.figures import NOTHING, estimate_text, judged_steps, plain_samples, rounded, scored_by, steps_of
from fewstep.lab.report.rules import RULES, STATES, Verdict, judge, threshold_text
from fewstep.lab.report.run import Run
from fewstep.lab.report.traces import Traces

SIGNS = {"bad": "✕", "look": "!", "good": "✓", "not measured": NOTHING}
"""What shows a state beside its colour and its word."""
TURNS_TEXT_AROUND = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
BAND = f"{ENTROPY_BAND_NATS:g} nats"
SPREAD_FOR_LOG = 30.0
"""Losses that fall by more than this factor are drawn on a logarithmic axis."""
MOST_TEXTS, MOST_LETTERS = 3, 600
NEAR = (0.1, 0.25, 0.5, 1.0)
"""Where one colour of the viewer ends and the next begins, rms: generated tokens lie at some tenths, data about 1."""
CAPTIONS = {
    "first_failure": "How far latents of data move before their token changes: where both lines rise together, a "
    "cell ends as near in one direction as in any other.",
    "noise_robustness": "What the readout reads when a latent is displaced.",
    "boundary_distance_generated": "Distance of tokens to the nearest flip: it should be as for data.",
    "tube": "Theorem 3 of arXiv:2606.30705: tokens that flip under the posterior mean, and data within c s of a "
    "boundary. Where they agree, the distance to a boundary is what decides.",
    "decidedness": "Whether two continuations with fresh noise end in the same token: 0 as often as random tokens, 1 "
    "always.",
    "stiffness": "How much the velocity changes with the state. Near t = 1 it is about 1 / (1 - t) for any model.",
    "cci_noise": "Share of a token's uncertainty that the head's earlier tokens resolve, on data with noise.",
}
"""What the title of a result does not say."""
PAGE = files("fewstep.lab.report") / "page"


@dataclass(frozen=True)
class Table:
    """``heading`` and ``rows`` of strings, the first cell of a row being its name; ``name`` is unique on the page."""

    name: str
    caption: str
    heading: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Report:
    """All that a page shows: charts and tables by the key of their section, texts by run (a dict for each setting), the
    viewer's data as JSON."""

    title: str
    verdicts: tuple[Verdict, ...]
    charts: dict[str, list[Chart]]
    tables: dict[str, list[Table]]
    texts: list[tuple[str, list[dict[str, Any]]]]
    viewer: Markup


def make_report(runs: Sequence[Run], *, title: str | None = None, traces: Mapping[str, Traces] | None = None) -> Report:
    """Judge ``runs`` and draw their charts. ``traces`` are by the runs' names."""
    return Report(
        title or f"Few-step report: {', '.join(run.name for run in runs)}",
        tuple(map(judge, runs)),
        {
            "training": list(_loss_charts(runs)),
            "measurements": list(_result_charts(runs)),
            "scores": list(_score_charts(runs)),
        },
        {
            "measurements": [*side_by_side(runs), *_estimate_tables(runs)],
            "scores": [_score_table(index, run) for index, run in enumerate(runs) if run.rows],
            "provenance": [_provenance(runs)],
        },
        [(run.name, groups) for run in runs if (groups := _text_groups(run))],
        viewer_json(traces) if traces else Markup(),
    )


def page_html(report: Report) -> str:
    """The whole page. The same report gives the same bytes."""
    environment = Environment(
        loader=PackageLoader("fewstep.lab.report", "page"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    text = environment.get_template("page.html.j2").render(
        report=report,
        rules=[rule for rule in RULES if any(verdict.of(rule.key) for verdict in report.verdicts)],
        opened=[finding.rule.key for verdict in report.verdicts for finding in verdict.urgent[:1]],
        states=STATES,
        threshold_text=threshold_text,
        signs=SIGNS,
        labels=[f"under {NEAR[0]:g}", *(f"{low:g} to {high:g}" for low, high in pairwise(NEAR)), f"from {NEAR[-1]:g}"],
        css=Markup((PAGE / "page.css").read_text("utf-8")),
        js=Markup((PAGE / "viewer.js").read_text("utf-8")),
        version=__version__,
    )
    return "".join(_code(letter) if _is_harmful(letter) else letter for letter in text)


def _is_harmful(letter: str) -> bool:
    """Whether a character would vanish, break the file, or turn other text around."""
    return letter not in "\n\t" and (unicodedata.category(letter) in ("Cc", "Cs") or letter in TURNS_TEXT_AROUND)


def _code(letter: str) -> str:
    return f"⟨{ord(letter):02X}⟩"


def viewer_json(traces: Mapping[str, Traces]) -> Markup:
    """The data of the viewer, fit to stand in a ``<script>`` element: nothing in it can end the element or a line."""
    runs = [
        {"name": name, "traces": asdict(replace(traced, vocabulary=tuple(map(visible, traced.vocabulary))))}
        for name, traced in traces.items()
    ]
    text = json.dumps({"runs": runs, "bounds": NEAR}, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for letter in "<>&\u2028\u2029":
        text = text.replace(letter, f"\\u{ord(letter):04x}")
    return Markup(text)


def visible(token: str) -> str:
    """``token`` with an arrow for each new line, and a code for each character without looks of its own."""
    hidden = ("Cc", "Cf", "Cs", "Zl", "Zp")
    shown = (_code(letter) if unicodedata.category(letter) in hidden else letter for letter in token.replace("\n", "↵"))
    return "".join(shown)


def _loss_charts(runs: Sequence[Run]) -> Iterator[Chart]:
    """One for each stage that some run trained."""
    for stage in dict.fromkeys(log.stage for run in runs for log in run.stages):
        series = _labelled(runs, ((run, log.curves) for run in runs for log in run.stages if log.stage == stage))
        values = [value for curve in series for value in curve.y]
        if values:
            log_y = min(values) > 0 and max(values) / min(values) > SPREAD_FOR_LOG
            title = f"Loss of the stage {stage.replace('_', ' ')}"
            picture = Picture(title, "training step", "loss", series, log_y=log_y)
            yield chart(picture, f"chart-loss-{_identifier(stage)}", f"{title}.")


def _labelled(runs: Sequence[Run], curves: Iterable[tuple[Run, Iterable[Series]]]) -> tuple[Series, ...]:
    """The curves of each run; on a page on several ``runs`` with the run's name before their labels."""
    named = ((f"{run.name}: " if len(runs) > 1 else "", curve) for run, group in curves for curve in group)
    return tuple(replace(curve, label=prefix + curve.label) for prefix, curve in named)


def _result_charts(runs: Sequence[Run]) -> Iterator[Chart]:
    """One for each result with curves, of all runs that have it."""
    for name in dict.fromkeys(name for run in runs for name in run.results):
        pictures = [(run, run.results[name].picture()) for run in runs if name in run.results]
        drawn = [(run, picture) for run, picture in pictures if picture is not None]
        if drawn:
            first = drawn[0][1]
            series = _labelled(runs, ((run, picture.series) for run, picture in drawn))
            picture = replace(first, series=series, kind=first.kind if len(series) == 1 else "lines")
            yield chart(picture, f"chart-{_identifier(name)}", f"{first.title}. {CAPTIONS.get(name, '')}".strip())


def side_by_side(runs: Sequence[Run]) -> Iterator[Table]:
    """All diagnoses in one table, a column each, with what they were measured on; none of fewer than two."""
    shown = [(run.name, run.diagnosis) for run in runs if run.diagnosis is not None]
    if len(shown) < 2:
        return
    diagnoses = [diagnosis for _, diagnosis in shown]
    names = dict.fromkeys(key for diagnosis in diagnoses for key in diagnosis.protocol if key != "latent_rms")
    values = {key: [diagnosis.protocol.get(key) for diagnosis in diagnoses] for key in names}
    differing = [key for key, column in values.items() if any(value != column[0] for value in column)]
    caption = "Diagnoses side by side, with 95 % intervals; ≥ marks a lower bound. "
    caption += f"Their protocols differ in {', '.join(differing)}." if differing else "Their protocols are the same."
    rows = [
        ("model", *(diagnosis.model for diagnosis in diagnoses)),
        ("kind", *(diagnosis.kind for diagnosis in diagnoses)),
        ("n", *(f"{diagnosis.n:,}" for diagnosis in diagnoses)),
        ("examples", *(f"{diagnosis.num_examples:,}" for diagnosis in diagnoses)),
        ("latents", *("whitened" if d.protocol.get("whitened", True) else "not whitened" for d in diagnoses)),
    ]
    by_name = [{row.name: row for row in diagnosis.rows()} for diagnosis in diagnoses]
    for name in dict.fromkeys(name for column in by_name for name in column):
        rows.append((name, *(_measured(column.get(name)) for column in by_name)))
    yield Table("table-side-by-side", caption, ("", *(name for name, _ in shown)), rows)


def _measured(row: Row | None) -> str:
    return NOTHING if row is None else f"{'≥ ' if '>=' in row.note else ''}{estimate_text(row.estimate)}"


def _estimate_tables(runs: Sequence[Run]) -> Iterator[Table]:
    """Every estimate of each diagnosis, with the state by a declared threshold."""
    for index, run in enumerate(runs):
        rows = []
        thresholds = run.diagnosis.thresholds if run.diagnosis else {}
        for row in run.diagnosis.rows() if run.diagnosis else ():
            threshold, value, state = thresholds.get(row.name), row.estimate.value, ""
            if threshold is not None and value is not None:
                state = f"{threshold.state(value)} ({threshold_text(threshold)})"
            rows.append((row.name, estimate_text(row.estimate), row.unit, row.note, state))
        if rows:
            heading = ("row", "value", "unit", "note", "state")
            yield Table(f"table-estimates-{index}", f"{run.name}: estimates with 95 % intervals.", heading, rows)


def _score_charts(runs: Sequence[Run]) -> Iterator[Chart]:
    """Perplexity over passes and seconds, entropy over passes, for each group of runs of one protocol."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        if plain_samples(run):
            groups.setdefault(run.rows[0].protocol_hash, []).append(run)
    for index, group in enumerate(groups.values()):
        names = ", ".join(run.name for run in group)
        plain = [plain_samples(run) for run in group]
        plain[0] += [row for row in group[0].rows if row.setting["name"] in YARDSTICKS]  # the same for the group
        (perplexity, entropy), (over_time, _) = (
            zip(*(score_pictures(rows, cost, "the scorer") for rows in plain), strict=True) for cost in (NFE, SECONDS)
        )
        for name, pictures, caption in (
            ("perplexity-nfe", perplexity, f"Lower is likelier. {names}: {scored_by(group[0])}."),
            ("perplexity-seconds", over_time, "The same over computing time at the batch size of the sweep."),
            ("entropy_nats-nfe", entropy, f"Perplexities compare within {BAND} of real text, as shaded."),
        ):
            series = _labelled(runs, zip(group, (picture.series for picture in pictures), strict=True))
            picture = replace(pictures[0], title=f"{names}: {pictures[0].title}", series=series)
            yield chart(picture, f"chart-{name}-{index}", caption)


def _score_table(index: int, run: Run) -> Table:
    """All rows of a run."""
    heading, *lines = table_lines(run.rows)
    return Table(f"table-scores-{index}", f"{run.name}: {scored_by(run)}.", heading, lines)


def _text_groups(run: Run) -> list[dict[str, Any]]:
    """Samples of each setting; real text, and few and the most steps, are open at first."""
    plain = plain_samples(run)
    judged = judged_steps(plain)
    groups = []
    for row in (row for row in run.rows if row.examples):
        scores = {"perplexity": row.value("perplexity"), "entropy": row.value("entropy_nats")}
        texts = row.examples[:MOST_TEXTS]
        groups.append(
            {
                "setting": label_of(row.setting),
                "scores": ", ".join(f"{name} {rounded(value)}" for name, value in scores.items() if value is not None),
                "texts": [text if len(text) <= MOST_LETTERS else f"{text[:MOST_LETTERS]} …" for text in texts],
                "first": row.setting["name"] == HELD_OUT or (row in plain and steps_of(row) in judged),
            }
        )
    return groups


def _provenance(runs: Sequence[Run]) -> Table:
    """The parts of the model, and what the figures were measured with."""
    facts = [dict(_facts(run)) for run in runs]
    names = list(dict.fromkeys(name for column in facts for name, value in column.items() if value))
    rows = [(name, *(column.get(name) or NOTHING for column in facts)) for name in names]
    return Table("table-provenance", "Model, data and protocol.", ("", *(run.name for run in runs)), rows)


def _facts(run: Run) -> Iterator[tuple[str, str]]:
    yield "read from", run.path
    for part, spec in (run.manifest.parts if run.manifest else {}).items():
        size = f", {run.sizes[part]:,} numbers" if part in run.sizes else ""
        yield part.replace("_", " "), f"{spec.class_path.rpartition('.')[2]}{size}: {_written(spec.init_args)}"
    yield "identity", _written({name: value for name, value in run.identity.items() if name != "versions"})
    yield "trained with", _written(run.identity.get("versions", {}))
    for log in run.stages:
        values = {name: rounded(value) for name, value in log.last.items()}
        yield f"last validation of the {log.stage.replace('_', ' ')}", _written(values)
    for row in run.rows[:1]:
        yield "scoring", f"{scored_by(run)}, model {row.model}, seeds {', '.join(map(str, row.seeds))}"
        yield "scored with", _written(row.protocol.get("versions", {}))
    if run.diagnosis is not None:
        shown = run.diagnosis
        positions = f", {shown.num_positions} positions in each" if shown.num_positions else ""
        notes = " ".join(["", *shown.notes])
        yield "diagnosis", f"{shown.num_examples} examples{positions}, seed {shown.seed}.{notes}"
        yield "protocol of the diagnosis", _written(shown.protocol)


def _written(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items() if value not in (None, "", {}, []))


def _identifier(name: str) -> str:
    return "".join(letter if letter.isascii() and letter.isalnum() else "-" for letter in name)
