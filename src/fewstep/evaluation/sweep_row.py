"""One row of a sweep, and the table that rows stand in."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from fewstep.evaluation.columns import aligned_columns, markdown_table, rounded, shown
from fewstep.metrics.intervals import Interval

FLOW, HELD_OUT, NOISE = "flow", "held-out text", "pure noise"
"""Names of the rows of a model's own samples, of real text, and of noise that was read; others have their own."""

COLUMNS = (
    "text",
    "readout",
    "reinjection",
    "noise",
    "K",
    "NFE",
    "perplexity",
    "95 % interval",
    "entropy",
    "distinct-1/2/4",
    "rep-4",
    "copy",
    "mem-8",
    "late flips",
    "CCI",
    "tokens / s",
    "N",
)
"""What every table has; :func:`table_lines` adds what its rows differ in besides."""

FRESH, REUSED, NO_SNAP = "fresh", "reused", "none"
"""How noise is drawn and estimates are corrected where nothing is said of it."""


@dataclass(frozen=True)
class Setting:
    """What a row is about. For yardsticks all but ``name`` is None.

    ``reinjection`` and ``snap`` as they were written on the command line,
    ``noise_temperature`` the factor on a step's old noise, ``initial_temperature`` that on x_0, ``noise`` whether the
    re-injected noise is fresh or reused.
    """

    name: str
    readout: str | None = None
    num_steps: int | None = None
    reinjection: str | None = None
    noise_temperature: float | None = None
    initial_temperature: float | None = None
    noise: str | None = None
    snap: str | None = None

    def label(self) -> str:
        """For a progress bar."""
        if self.num_steps is None:
            return self.name
        plain = f"{self.readout} K={self.num_steps} gamma={self.reinjection} T={self.noise_temperature:g}"
        return " ".join([plain, *(f"{axis.short}={shown}" for axis in AXES if (shown := axis.unusual(self)))])


@dataclass(frozen=True)
class Axis:
    """What a setting has at its ``usual`` value where nobody asked for another: a ``column`` of a table, and ``short``
    for a label. ``of`` gives the value as it is written, "" for yardsticks."""

    column: str
    short: str
    usual: str
    of: Callable[[Setting], str]

    def unusual(self, setting: Setting) -> str:
        """The value as it is written, "" where it is the usual one."""
        shown = self.of(setting)
        return "" if shown == self.usual else shown


AXES = (
    Axis("initial noise", "T0", "1", lambda setting: shown(setting.initial_temperature, "g")),
    Axis("drawn", "noise", FRESH, lambda setting: setting.noise or ""),
    Axis("snap", "snap", NO_SNAP, lambda setting: setting.snap or ""),
)
"""Axes of a sweep that have a column only where a row is not at the usual value."""
AXES_BEFORE, MAUVE_BEFORE = COLUMNS.index("K"), COLUMNS.index("late flips")


@dataclass(frozen=True)
class SweepRow:
    """What was measured on the ``num_samples`` texts (of all ``seeds`` together) of one setting.

    ``perplexity`` is the corpus perplexity under the protocol's scorer with its 95 % bootstrap interval over samples,
    ``perplexity_by_seed`` the same of each seed; None where nothing is scored. ``entropy_nats``: mean unigram entropy
    of a sample on the scored tokens, with its interval. ``distinct_1``, ``_2``, ``_4``: distinct over all n-grams.
    ``repeated_4grams``: share of a sample's 4-grams that occurred in it before. ``longest_copy_tokens``: of all
    samples, the longest run that the train text holds; ``mean_copy_tokens`` the mean over samples of their longest;
    ``memorised_8grams``: share of 8-grams that it holds. ``mauve``: of the texts against held-out text, by the scorer's
    features, None where it was not asked for. ``grammar``: what the grammar says of the texts where the corpus is drawn
    from one, else None. ``late_flip_rate``: share of tokens that change between the
    last two predictions (None for one step and for yardsticks), on the parallel readout whatever the row's own.
    ``cci`` of the commitment head, None for other readouts. ``nfe``: forward passes a sample, of all networks: the
    denoiser's, and 1 for the parallel readout or L for the head. ``seconds``: computing time from noise to ids,
    summed over batches (and so over processes). ``protocol`` is the scoring protocol as plain values and
    ``protocol_hash`` its hash: rows compare where it is equal. ``model`` is the hash of the model's parts.
    ``provenance``: code, versions, command and machine, or None; rows compare whatever it is.
    """

    setting: Setting
    num_samples: int
    seeds: tuple[int, ...]
    perplexity: float | None
    perplexity_interval: Interval | None
    perplexity_by_seed: tuple[float | None, ...]
    entropy_nats: float
    entropy_interval: Interval
    scored_tokens: int
    distinct_1: float | None
    distinct_2: float | None
    distinct_4: float | None
    repeated_4grams: float | None
    longest_copy_tokens: int
    mean_copy_tokens: float
    memorised_8grams: float | None
    mauve: float | None
    late_flip_rate: float | None
    cci: float | None
    cci_interval: Interval | None
    nfe: int | None
    seconds: float | None
    tokens_per_second: float | None
    batch_size: int
    device: str
    protocol_hash: str
    protocol: dict[str, Any]
    model: str
    examples: tuple[str, ...] = ()
    provenance: dict[str, Any] | None = None

    def cells(self) -> tuple[str, ...]:
        """The row as strings, one for each of ``COLUMNS``."""
        setting, interval = self.setting, self.perplexity_interval
        distinct = (self.distinct_1, self.distinct_2, self.distinct_4)
        return (
            setting.name,
            setting.readout or "",
            setting.reinjection or "",
            shown(setting.noise_temperature, "g"),
            shown(setting.num_steps, "d"),
            shown(self.nfe, "d"),
            rounded(self.perplexity),
            "" if interval is None else f"{rounded(interval.low)} - {rounded(interval.high)}",
            f"{self.entropy_nats:.2f}",
            "/".join(shown(value, ".2f") or "-" for value in distinct),
            shown(self.repeated_4grams, ".3f"),
            str(self.longest_copy_tokens),
            shown(self.memorised_8grams, ".3f"),
            shown(self.late_flip_rate, ".3f"),
            shown(self.cci, ".3f"),
            shown(self.tokens_per_second, ",.0f"),
            str(self.num_samples),
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "SweepRow":
        """The inverse of :meth:`to_dict`, also after a way through JSON.

        Raises ``KeyError`` or ``TypeError`` for missing, unknown or mistyped values.
        """
        values = {"provenance": None, **values}  # rows of before these were kept lack them
        for found, kind in ((values, cls), (values["setting"], Setting)):
            if set(found) != {item.name for item in fields(kind)}:
                raise KeyError("keys of another version")
        intervals = {
            name: None if values[name] is None else Interval(**values[name])
            for name in ("perplexity_interval", "entropy_interval", "cci_interval")
        }
        lists = {name: tuple(values[name]) for name in ("seeds", "perplexity_by_seed", "examples")}
        return cls(**{**values, **intervals, **lists, "setting": Setting(**values["setting"])})


def table_lines(rows: Sequence[SweepRow]) -> list[tuple[str, ...]]:
    """Heading and rows."""
    return [COLUMNS, *(row.cells() for row in rows)]


def sweep_markdown(rows: Sequence[SweepRow], caption: str) -> str:
    """A Markdown table with its caption below."""
    return markdown_table(table_lines(rows), caption)


def sweep_text(rows: Sequence[SweepRow], caption: str) -> str:
    """Aligned columns for a terminal, with the caption below."""
    return aligned_columns(table_lines(rows), (0, 1, 2)) + "\n" + caption
