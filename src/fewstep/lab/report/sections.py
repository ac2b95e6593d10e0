"""The sections of the page between verdict and provenance, each made of all runs at once."""

from collections.abc import Sequence

from fewstep.diagnostics.result import Picture, Row, Series
from fewstep.evaluation.sweep_row import FLOW
from fewstep.lab.report.blocks import Block, Chart, Section, Table, TextGroup, Texts, chart_of, overlay, present
from fewstep.lab.report.dabi_chart import IMAGE_PLACES, TEXT_PLACES, sharpness_charts, sharpness_of, sharpness_table
from fewstep.lab.report.diagnosed import Diagnosed
from fewstep.lab.report.evidence import Evidence, Sampled, judged_steps
from fewstep.lab.report.rules import DIAGNOSE, EVALUATE
from fewstep.lab.report.score_charts import score_charts, score_table
from fewstep.lab.report.thresholds import threshold_text
from fewstep.lab.report.wording import estimate_text, figure

SPREAD_FOR_LOG = 30.0
"""Losses that fall by more than this factor are drawn on a logarithmic axis."""
MOST_TEXTS, MOST_LETTERS = 3, 600


def sections(evidences: Sequence[Evidence]) -> tuple[Section, ...]:
    """All of them, in order."""
    return (
        training_section(evidences),
        readout_section(evidences),
        trajectory_section(evidences),
        scores_section(evidences),
        texts_section(evidences),
        further_section(evidences),
    )


def training_section(evidences: Sequence[Evidence]) -> Section:
    """A chart of losses for each stage that some run trained."""
    names = list(dict.fromkeys(stage.stage for one in evidences for stage in one.run.stages))
    charts: list[Block | None] = []
    several = len([one for one in evidences if one.run.stages]) > 1
    for name in names:
        series = [
            Series(f"{one.run.name}: {curve.label}" if several else curve.label, curve.x, curve.y)
            for one in evidences
            for stage in one.run.stages
            if stage.stage == name
            for curve in stage.curves
        ]
        if series:
            title = name.replace("_", " ")
            log_y = _spread(series) > SPREAD_FOR_LOG
            picture = Picture(f"Loss of the {title}", "training step", "loss", tuple(series), log_y=log_y)
            charts.append(chart_of(picture, f"chart-loss-{_identifier(name)}", f"Loss of the stage {title}."))
    return Section(
        "training",
        "Training",
        "Training loss as it was logged, of single batches, and the loss on held-out text. Where held-out loss rises "
        "while training loss falls, the stage has begun to memorise.",
        present(charts),
        "No logs of training: the stages' folders (autoencoder/, flow/, ...) with their csv/ are not beside the run.",
    )


def readout_section(evidences: Sequence[Evidence]) -> Section:
    """How well, how sharply and how far from a flip tokens are read."""
    rows = sharpness_of(evidences)
    robustness = overlay(
        evidences,
        {"noise_robustness/isotropic": "isotropic noise", "noise_robustness/aligned": "towards the next token"},
        "Token accuracy under displacement",
        "displacement (rms of the latents)",
        "token accuracy",
    )
    distances = overlay(
        evidences,
        {"boundary_distance/histogram": "data", "boundary_distance_generated/histogram": "generated"},
        "Distance to the nearest flip",
        "distance (rms of the latents)",
        "density",
        density=True,
    )
    blocks = present(
        [
            _chart(robustness, "chart-robustness", "What the readout reads when a latent is moved."),
            _chart(
                distances,
                "chart-distance",
                "How far tokens are from becoming another, to first order. Data should lie to the right, and what "
                "the flow makes beside it.",
            ),
            *sharpness_charts(rows),
            sharpness_table(rows),
        ]
    )
    return Section(
        "readout",
        "Readout: how sharp, how far from a flip",
        "DABI says how much more the whole output moves in one direction than in a random one of the same length. "
        "Large at boundaries and small at data is the signature of a sharp categorical readout.",
        blocks,
        f"Not measured: {DIAGNOSE}",
    )


def trajectory_section(evidences: Sequence[Evidence]) -> Section:
    """Where on the way tokens are decided, and how steep the way is."""
    charts = [_chart(*wanted) for wanted in _trajectory_pictures(evidences)]
    return Section(
        "trajectory",
        "Trajectory: where tokens are decided",
        "A deterministic map in few steps has to choose between tokens early; these curves say how late the choice "
        "is made, and what it costs.",
        present(charts),
        f"Not measured: {DIAGNOSE}",
    )


def _trajectory_pictures(evidences: Sequence[Evidence]) -> list[tuple[Picture | None, str, str]]:
    """Picture, name and caption of each chart."""
    several = sum(one.curve("tube/mass") is not None for one in evidences) > 1
    tube_curves = {"tube/mass": "tube mass T(c s)", "tube/flips": "flips, posterior mean"}
    if not several:
        tube_curves["tube/isotropic"] = "flips, isotropic noise"
    return [
        (
            overlay(
                evidences,
                tube_curves,
                "Flips and the tube",
                "noise scale s = sigma / alpha",
                "share of tokens",
                log_x=True,
            ),
            "chart-tube",
            "Theorem 3 of arXiv:2606.30705 as curves: tokens that flip under the posterior mean, and data within c s "
            "of a boundary. Where they agree, the distance to a boundary is what decides.",
        ),
        (
            overlay(
                evidences,
                {"decidedness/decidedness": "decidedness"},
                "Decidedness over time",
                "t (0 noise, 1 data)",
                "decidedness",
            ),
            "chart-decidedness",
            "Whether two continuations with fresh noise end in the same token: 0 as often as random tokens of the "
            "text, 1 always.",
        ),
        (
            overlay(
                evidences,
                {"decision_step/shares": "tokens"},
                "Step at which a token settles",
                "step",
                "share of tokens",
                kind="bars",
            ),
            "chart-decision-step",
            "The step after which a token never changes again, on a deterministic path. Tokens at the right are "
            "decided last.",
        ),
        (
            overlay(
                evidences,
                {"stiffness/stiffness": "largest singular value"},
                "Stiffness over time",
                "t",
                "largest singular value",
                log_y=True,
            ),
            "chart-stiffness",
            "How much the velocity changes with the state. Near t = 1 it is about 1 / (1 - t) for any model.",
        ),
        (
            overlay(evidences, {"cci_noise/cci": "CCI"}, "Commitment of the head under noise", "noise (rms)", "CCI"),
            "chart-cci",
            "Share of a token's uncertainty that the head's earlier tokens take away, on data with noise.",
        ),
    ]


def scores_section(evidences: Sequence[Evidence]) -> Section:
    """Charts and tables of the samples' scores."""
    tables = [score_table(one, f"table-scores-{number}") for number, one in enumerate(evidences, 1)]
    return Section(
        "scores",
        "Samples: what steps, noise and commitment buy",
        "Perplexity says something only beside entropy: a text that repeats itself is likely. Runs share a chart "
        "where their rows carry the same protocol.",
        present([*score_charts(evidences), *tables]),
        f"Not measured: {EVALUATE}",
    )


def texts_section(evidences: Sequence[Evidence]) -> Section:
    """Sample texts, those of the judged steps at once."""
    return Section(
        "texts",
        "Texts",
        "The first samples of each setting, unselected, as they came out.",
        present([_texts(one) for one in evidences]),
        f"No samples: {EVALUATE}, or fewstep sample RUN/model.",
    )


DRAWN = (
    "boundary_distance",
    "boundary_distance_generated",
    "cci_noise",
    "decidedness",
    "decision_step",
    "noise_robustness",
    "stiffness",
    "tube",
    *TEXT_PLACES,
    *IMAGE_PLACES,
)
"""Results that have a place in another section."""


def further_section(evidences: Sequence[Evidence]) -> Section:
    """Every other result as it was stored, those of measurements from outside the package among them."""
    blocks: list[Block | None] = []
    for evidence in evidences:
        rows = []
        for diagnosed in evidence.run.diagnoses:
            for name, result in diagnosed.results.items():
                if name in DRAWN:
                    continue
                rows += [_row(row, diagnosed) for row in result.rows]
                chart = f"chart-{_identifier(f'{evidence.run.name} {name} {len(blocks)}')}"
                blocks.append(_chart(result.picture(), chart, f"{evidence.run.name}: {name}, {diagnosed.origin}."))
        if rows:
            heading = ("row", "value", "unit", "note", "measured by", "state")
            table = f"table-further-{_identifier(evidence.run.name)}"
            blocks.append(Table(table, f"{evidence.run.name}: estimates with 95 % intervals.", heading, tuple(rows)))
    return Section(
        "further",
        "Further measurements",
        "Results that no other section shows, as they were measured.",
        present(blocks),
        f"None: {DIAGNOSE}",
    )


def _row(row: Row, diagnosed: Diagnosed) -> tuple[str, ...]:
    threshold, value = diagnosed.thresholds.get(row.name), row.estimate.value
    state = "" if threshold is None or value is None else f"{threshold.state(value)} ({threshold_text(threshold)})"
    return (row.name, estimate_text(row.estimate), row.unit, row.note, diagnosed.origin, state)


def _chart(picture: Picture | None, name: str, caption: str) -> Chart | None:
    return None if picture is None else chart_of(picture, name, caption)


def _texts(evidence: Evidence) -> Texts | None:
    steps = judged_steps(one.num_steps for one in evidence.sampled if one.num_steps is not None)
    strengths = {one.reinjection for one in evidence.sampled if one.num_steps is not None}
    ends = {min(strengths), max(strengths)} if strengths else set()
    groups = [
        TextGroup(
            one.setting(),
            f"perplexity {figure(one.perplexity)}, entropy {one.entropy_nats:.2f} nats",
            tuple(_cut(text) for text in one.examples[:MOST_TEXTS]),
            _comes_first(one, steps, ends),
        )
        for one in evidence.sampled
        if one.examples
    ]
    if not groups and evidence.run.samples is not None:
        groups = [TextGroup("samples.txt", "", (evidence.run.samples,), first=False)]
    return Texts(evidence.run.name, tuple(groups)) if groups else None


def _comes_first(one: Sampled, steps: Sequence[int], strengths: set[float]) -> bool:
    if one.name != FLOW:
        return one.name == "held-out text"
    return one.num_steps in steps and one.reinjection in strengths


def _cut(text: str) -> str:
    return text if len(text) <= MOST_LETTERS else f"{text[:MOST_LETTERS]} …"


def _spread(series: Sequence[Series]) -> float:
    values = [value for one in series for value in one.y]
    return max(values) / min(values) if values and min(values) > 0 else 1.0


def _identifier(name: str) -> str:
    return "".join(letter if letter.isascii() and letter.isalnum() else "-" for letter in name)
