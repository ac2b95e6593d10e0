"""Rows of the grammar study: the file they stand in, and the table made of them."""

import math
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from fewstep.evaluation.columns import markdown_table
from fewstep.evaluation.grammar_scores import COLUMNS, GrammarScores
from fewstep.evaluation.row_file import RowFile


@dataclass(frozen=True)
class Row:
    """One setting: the grammar's ``scores``, the share of texts that the train split holds word for word, the rms of
    the latents that were read (1 for data, None where there are none), and what a sample took."""

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
        "copied",
        "same rms, no noise",
    )
    lines = [head]
    for row in rows:
        numbers = (row.reinjection, row.noise_temperature, row.num_steps, row.nfe)
        shown = ("" if number is None else f"{number:g}" for number in numbers)
        rms = "" if row.latent_rms is None else f"{row.latent_rms:.3f}"
        by_seed = " ".join(f"{share:.3f}" for share in row.scores.valid_by_seed)
        cells = (row.name, row.readout or "", *shown, *row.scores.cells(), by_seed, rms, f"{row.copied:.3f}")
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
    print(markdown_table(lines, caption))


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
