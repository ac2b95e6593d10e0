"""Rows of the grammar study: the file they stand in, the table and the picture made of them."""

import math
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from fewstep.diagnostics.result import Picture, Series
from fewstep.evaluation.columns import markdown_table
from fewstep.evaluation.grammar_scores import COLUMNS, GrammarScores
from fewstep.evaluation.row_file import RowFile
from fewstep.lab.report import write_picture


@dataclass(frozen=True)
class Row:
    """One setting: the grammar's ``scores``, the share of texts that the train split holds word for word, the rms of
    the latents that were read (1 for data, None where there are none), what a sample took, and the number of distinct
    texts (a flow that is too cold writes few texts again and again; None in rows of an earlier version)."""

    name: str
    readout: str | None
    num_steps: int | None
    reinjection: float | None
    noise_temperature: float | None
    scores: GrammarScores
    copied: float
    latent_rms: float | None
    nfe: int | None
    seconds: float
    model: str
    samples: int
    seeds: int
    examples: tuple[str, ...]
    distinct_texts: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values, fit for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Row":
        """The inverse of :meth:`to_dict`, also after a way through JSON."""
        scores, examples = GrammarScores.from_dict(values["scores"]), tuple(values["examples"])
        return cls(**{**values, "scores": scores, "examples": examples})

    @property
    def key(self) -> tuple[object, ...]:
        """What tells settings apart."""
        setting = (self.name, self.readout, self.num_steps, self.reinjection, self.noise_temperature)
        return *setting, self.model, self.samples, self.seeds


def write_table(folder: Path) -> None:
    """``table.md`` of all rows of the newest model and numbers of samples, and the matched controls."""
    rows = RowFile(folder / "rows.jsonl", Row).read()
    if not rows:
        raise SystemExit(f"{folder / 'rows.jsonl'} holds no rows: sample first")
    rows = [row for row in rows if row.key[-3:] == rows[-1].key[-3:]]
    head = (
        "text",
        "readout",
        "gamma",
        "noise",
        "K",
        "NFE",
        *COLUMNS,
        "by seed",
        "latent rms",
        "distinct texts",
        "copied",
        "same rms, no noise",
    )
    lines = [head]
    for row in rows:
        numbers = (row.reinjection, row.noise_temperature, row.num_steps, row.nfe)
        shown = ("" if number is None else f"{number:g}" for number in numbers)
        rms = "" if row.latent_rms is None else f"{row.latent_rms:.3f}"
        by_seed = " ".join(f"{share:.3f}" for share in row.scores.valid_by_seed)
        cells = (row.name, row.readout or "", *shown, *row.scores.cells(), by_seed, rms)
        cells = (*cells, "" if row.distinct_texts is None else str(row.distinct_texts), f"{row.copied:.3f}")
        lines.append((*cells, matched(row, rows)))
    entropy, first = rows[0].scores.entropy_per_word, rows[0]
    caption = (
        f"{first.samples} samples for each of {first.seeds} seeds; intervals 95 % (Wilson over all samples); broken: "
        f"sentences but for an agreement; the grammar itself has {entropy:.3f} nats a word; branches: total variation "
        "of branch frequencies from the grammar's, by chance: the range for as many true sentences; copied: share that "
        "the train split holds; same rms, no noise: valid share of the deterministic flow at the noise temperature "
        "where its latents have this row's rms, between the temperatures that were tried."
    )
    (folder / "table.md").write_text(markdown_table(lines, caption), encoding="utf-8")
    write_picture(picture(rows), folder / "valid_share.png")
    print(markdown_table(lines, caption))


LINES = (
    ("deterministic, parallel", "flow", "parallel", 0.0, 1.0),
    ("re-injection 1, parallel", "flow", "parallel", 1.0, 1.0),
    ("deterministic, noise x 0.9, parallel", "flow", "parallel", 0.0, 0.9),
    ("deterministic, commitment head", "flow", "head", 0.0, 1.0),
    ("re-injection 1, commitment head", "flow", "head", 1.0, 1.0),
    ("exact denoiser, h = 0.7, deterministic", "exact, h = 0.7", "parallel", 0.0, 1.0),
    ("exact denoiser, h = 0.7, re-injection 1", "exact, h = 0.7", "parallel", 1.0, 1.0),
)
"""Lines of the picture: label, name, readout, strength, temperature."""


def picture(rows: list[Row]) -> Picture:
    """Share of valid texts over K, with its interval: one line a way of sampling, and the language model's level."""
    series = []
    for label, *way in LINES:
        found = [row for row in rows if [row.name, row.readout, row.reinjection, row.noise_temperature] == way]
        found.sort(key=lambda row: row.num_steps or 0)
        shares = [row.scores.valid for row in found]
        series.append(
            Series(
                label,
                tuple(float(row.num_steps or 0) for row in found),
                tuple(share.value for share in shares),
                tuple(share.interval.low for share in shares),
                tuple(share.interval.high for share in shares),
            )
        )
    ends = sorted({row.num_steps for row in rows if row.num_steps is not None})
    level = [row.scores.valid.value for row in rows if row.name == "language model"]
    if ends and level:
        span = (float(ends[0]), float(ends[-1]))
        series.append(Series("language model", span, (level[0], level[0])))
    return Picture("Sentences that the grammar can write", "steps K", "share", tuple(series), log_x=True)


def matched(row: Row, rows: list[Row]) -> str:
    """The valid share of the deterministic flow where its latents have the rms of a re-injected ``row``'s."""
    if not row.reinjection or row.readout != "parallel" or row.latent_rms is None:
        return ""
    ladder = sorted(
        (one.latent_rms, one.scores.valid.value)
        for one in rows
        if (one.name, one.readout, one.reinjection, one.num_steps) == (row.name, "parallel", 0, row.num_steps)
        if one.latent_rms is not None
    )
    for (low, at_low), (high, at_high) in pairwise(ladder):
        if low <= row.latent_rms <= high:
            share = 0.0 if math.isclose(low, high) else (row.latent_rms - low) / (high - low)
            return f"{at_low + share * (at_high - at_low):.3f}"
    return "out of range"
