"""Rows of the grammar study: the file they stand in, and the table made of them."""

import json
import math
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

from fewstep.evaluation.columns import markdown_table
from fewstep.evaluation.grammar_scores import COLUMNS, GrammarScores


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

    @property
    def key(self) -> tuple[object, ...]:
        """What tells settings apart."""
        setting = (self.name, self.readout, self.num_steps, self.reinjection, self.noise_temperature)
        return *setting, self.model, self.samples, self.seeds


def read_rows(file: Path) -> list[Row]:
    """The rows; a last line that was cut off is left out of the file, so that the next stands on a line of its own."""
    if not file.exists():
        return []
    text = file.read_text(encoding="utf-8")
    whole = text[: text.rfind("\n") + 1]
    if whole != text:
        file.write_text(whole, encoding="utf-8")
    rows = []
    for line in whole.splitlines():
        values = json.loads(line)
        scores, examples = GrammarScores.from_dict(values["scores"]), tuple(values["examples"])
        rows.append(Row(**{**values, "scores": scores, "examples": examples}))
    return rows


def append_row(file: Path, row: Row) -> None:
    """Add one line."""
    with file.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(asdict(row), ensure_ascii=False) + "\n")


def write_table(folder: Path) -> None:
    """``table.md`` of all rows of the newest model and numbers of samples, and the matched controls."""
    rows = read_rows(folder / "rows.jsonl")
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
