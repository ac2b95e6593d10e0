"""The table of generated text beside its yardsticks, as data, JSON and plain text."""

import json
from dataclasses import asdict, dataclass
from typing import Any

from fewstep.evaluation.columns import aligned_columns, markdown_table, rounded
from fewstep.metrics.intervals import Interval

COLUMNS = (
    "text",
    "readout",
    "gamma",
    "K",
    "NFE",
    "perplexity",
    "95 % interval",
    "entropy",
    "distinct-2",
    "s / 1,000 tokens",
    "N",
)


@dataclass(frozen=True)
class GenerationRow:
    """One kind of text.

    ``name``: "flow" for the model's own samples, else the yardstick's. ``readout``, ``num_steps``,
    ``reinjection`` (strength gamma) and ``nfe`` (denoiser evaluations a sample, the readout's pass not among them) are
    None for yardsticks; ``seconds_per_1000_tokens`` is
    None where nothing was generated. ``perplexity`` under the run's language model, with a 95 % bootstrap interval
    over samples; ``entropy_nats`` mean unigram entropy of a sample, on the model's tokens; ``pooled_entropy_nats`` that
    of all samples together; ``distinct_2`` distinct over all bigrams; ``examples`` the first few texts.
    """

    name: str
    readout: str | None
    num_steps: int | None
    reinjection: float | None
    nfe: int | None
    num_samples: int
    perplexity: float
    perplexity_interval: Interval
    entropy_nats: float
    pooled_entropy_nats: float
    distinct_2: float
    seconds_per_1000_tokens: float | None
    examples: tuple[str, ...] = ()

    def cells(self) -> tuple[str, ...]:
        """The row as strings, one for each of ``COLUMNS``."""
        seconds = "" if self.seconds_per_1000_tokens is None else f"{self.seconds_per_1000_tokens:.3f}"
        interval = self.perplexity_interval
        return (
            self.name,
            self.readout or "",
            "" if self.reinjection is None else f"{self.reinjection:g}",
            "" if self.num_steps is None else str(self.num_steps),
            "" if self.nfe is None else str(self.nfe),
            rounded(self.perplexity),
            f"{rounded(interval.low)} - {rounded(interval.high)}",
            f"{self.entropy_nats:.2f}",
            f"{self.distinct_2:.3f}",
            seconds,
            str(self.num_samples),
        )


@dataclass(frozen=True)
class GenerationTable:
    """All rows, and what they share: ``block_size`` tokens a sample, the ``scorer``'s name, the ``seed``, and
    ``batch_size`` and ``device``, on which the seconds depend. ``provenance``: code, versions, command and machine,
    None where they are unknown."""

    rows: tuple[GenerationRow, ...]
    block_size: int
    scorer: str
    seed: int
    batch_size: int
    device: str
    provenance: dict[str, Any] | None = None

    def row(
        self,
        name: str,
        readout: str | None = None,
        num_steps: int | None = None,
        reinjection: float | None = None,
    ) -> GenerationRow:
        """The row of that name, readout, number of steps and strength. Raises ``KeyError`` where there is none."""
        wanted = (name, readout, num_steps, reinjection)
        for row in self.rows:
            if (row.name, row.readout, row.num_steps, row.reinjection) == wanted:
                return row
        raise KeyError(f"no row {name!r} with readout {readout!r}, {num_steps} steps and strength {reinjection}")

    def caption(self) -> str:
        """What the numbers are, in one line."""
        return (
            f"Perplexity under {self.scorer}; blocks of {self.block_size} tokens; entropy in nats per sample; "
            "gamma is the strength of re-injection; "
            f"NFE without the readout's pass; seconds at batch size {self.batch_size} "
            f"on {self.device}; seed {self.seed}."
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)

    def to_json(self) -> str:
        """Everything, examples included, as indented JSON."""
        return json.dumps(self.to_dict(), indent=2, ensure_ascii=False) + "\n"

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "GenerationTable":
        """The inverse of :meth:`to_dict`, also after a way through JSON."""
        rows = []
        for row in values["rows"]:
            interval, examples = Interval(**row["perplexity_interval"]), tuple(row["examples"])
            rows.append(GenerationRow(**{**row, "perplexity_interval": interval, "examples": examples}))
        return cls(**{**values, "rows": tuple(rows)})

    def to_markdown(self) -> str:
        """A Markdown table with its caption below."""
        return markdown_table([COLUMNS, *(row.cells() for row in self.rows)], self.caption())

    def to_text(self) -> str:
        """Aligned columns for a terminal, with the caption below."""
        return aligned_columns([COLUMNS, *(row.cells() for row in self.rows)], (0, 1)) + "\n" + self.caption()
