"""Rows of the study of the exact denoiser, one per setting, with the numbers of each sample; and their table."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from fewstep.evaluation.columns import markdown_table
from fewstep.lab.theory.latents import CapRule
from fewstep.metrics.intervals import Interval, bootstrap_interval

NUM_RESAMPLES = 2000
COLUMNS = ("samples", "h", "cap", "K", "gamma", "T", "wrong tokens", "distance", "rms", "texts", "latents")
GAIN_COLUMNS = ("h", "K", "gamma", "control", "T or level", "distance", "control's", "wrong", "control's", "remains")


@dataclass(frozen=True)
class ExactSetting:
    """How samples were made. ``kind``:

    - "draws": of the latents smoothed by ``h``, what endless steps would give; no ``num_steps``;
    - "flow": ``num_steps`` equal Euler steps, re-injection ``reinjection``, with the ``cap`` and its ``rule``;
    - "noise", "initial": controls, the deterministic flow with the noise of each state, or of x_0 alone, times a
      ``temperature`` at which samples lie as far from the data as those re-injected with strength ``matches``;
    - "spread": the control the other way, re-injected samples with noise of level ``temperature`` added, at which they
      lie as far from the data as those re-injected with strength ``matches``, which is 0.

    ``temperature`` is found by matching, and not part of what tells settings apart.
    """

    kind: str
    h: float
    num_steps: int | None = None
    reinjection: float = 0.0
    cap: float | None = None
    rule: CapRule = "point"
    matches: float | None = None
    temperature: float | None = None


@dataclass(frozen=True)
class ExactRow:
    """One setting and what came of it, on ``num_samples`` samples of ``num_latents`` latents.

    Sample by sample: ``wrong_shares``, the share of tokens that differ from those of the nearest latent, and
    ``distances`` to it. ``rms`` of all numbers of the samples; ``num_texts`` distinct token sequences among them;
    ``num_latents_reached`` distinct nearest latents. ``temperature`` of a control, and whether it was ``matched``.
    ``provenance``: code, versions, command and machine, or None; it does not distinguish rows.
    """

    setting: ExactSetting
    model: str
    num_latents: int
    num_samples: int
    seed: int
    wrong_shares: tuple[float, ...] = ()
    distances: tuple[float, ...] = ()
    rms: float = 0.0
    num_texts: int = 0
    num_latents_reached: int = 0
    temperature: float | None = None
    matched: bool | None = None
    provenance: dict[str, Any] | None = None

    @property
    def key(self) -> tuple[object, ...]:
        """What tells rows apart."""
        return self.setting, self.model, self.num_latents, self.num_samples, self.seed

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "ExactRow":
        """The inverse of :meth:`to_dict`, also after a way through JSON. Raises ``TypeError`` for other values."""
        parts: dict[str, Any] = {name: tuple(one) if isinstance(one, list) else one for name, one in values.items()}
        parts["setting"] = ExactSetting(**values["setting"])
        return cls(**parts)

    @property
    def distance(self) -> float:
        """Mean of ``distances``."""
        return sum(self.distances) / len(self.distances)

    @property
    def wrong_share(self) -> float:
        """Mean of ``wrong_shares``."""
        return sum(self.wrong_shares) / len(self.wrong_shares)

    def label(self) -> str:
        """One line for whoever waits."""
        one = self.setting
        cap = "" if one.cap is None else f" cap {one.cap:g} {one.rule}"
        heat = "" if self.temperature is None else f" T={self.temperature:.3f}"
        return f"{one.kind} h={one.h:g} K={one.num_steps} gamma={one.reinjection:g}{cap}{heat}"


@dataclass(frozen=True)
class Gain:
    """What re-injection gains over the deterministic flow, and what of it a control leaves.

    ``gain``: wrong tokens of the deterministic flow minus those of the re-injected one. ``remaining``: the part of it
    that is left where samples lie equally far from the data: for the controls "noise" and "initial", the control's
    wrong tokens minus the re-injected ones; for "spread", the deterministic flow's minus the control's. ``share`` is
    remaining over gain; None where the gain's interval holds 0, and where the control's distance did not match.
    Intervals resample samples, the same in all three.
    """

    row: ExactRow
    own: ExactRow
    gain: float
    gain_interval: Interval
    remaining: float
    remaining_interval: Interval
    share: float | None
    share_interval: Interval | None


def gains(rows: Sequence[ExactRow]) -> list[Gain]:
    """One for each control whose deterministic and re-injected rows are there too."""
    known = {row.key: row for row in rows}
    found = []
    for row in rows:
        one = row.setting
        if one.matches is None:
            continue
        strength = one.reinjection if one.kind == "spread" else one.matches
        pair = [
            known.get((ExactSetting("flow", one.h, one.num_steps, gamma), *row.key[1:])) for gamma in (0.0, strength)
        ]
        if pair[0] is not None and pair[1] is not None:
            found.append(_gain(row, pair[0], pair[1]))
    return found


def _gain(row: ExactRow, plain: ExactRow, own: ExactRow) -> Gain:
    table = torch.tensor([plain.wrong_shares, own.wrong_shares, row.wrong_shares], dtype=torch.float64).T
    kept = (0, 2) if row.setting.kind == "spread" else (2, 1)

    def gain(values: Tensor) -> Tensor:
        return (values[..., 0] - values[..., 1]).mean(-1)

    def remaining(values: Tensor) -> Tensor:
        return (values[..., kept[0]] - values[..., kept[1]]).mean(-1)

    def share(values: Tensor) -> Tensor:
        return remaining(values) / gain(values)

    gain_interval = _interval(table, gain)
    sure = bool(row.matched) and gain_interval.low > 0
    return Gain(
        row=row,
        own=own,
        gain=float(gain(table)),
        gain_interval=gain_interval,
        remaining=float(remaining(table)),
        remaining_interval=_interval(table, remaining),
        share=float(share(table)) if sure else None,
        share_interval=_interval(table, share) if sure else None,
    )


def _interval(values: Tensor, statistic: Callable[[Tensor], Tensor]) -> Interval:
    source = torch.Generator().manual_seed(0)
    return bootstrap_interval(values, statistic, NUM_RESAMPLES, source, batched=True)


def table_of(rows: Sequence[ExactRow]) -> str:
    """The rows, and the gains under each control, as Markdown."""
    if not rows:
        raise ValueError("no rows: expected at least one.")
    first = rows[0]
    caption = (
        f"{first.num_latents:,} latents, {first.num_samples} samples (rows with a cap may have fewer), seed "
        f"{first.seed}; wrong tokens: share that differs from the tokens of the nearest latent, distance: to that "
        "latent; 95 % bootstrap intervals over samples; texts and latents: how many distinct ones came out; T: the "
        "temperature of a control, or for 'spread' the level of noise added; * where no temperature matched, and the "
        "nearest was taken."
    )
    text = markdown_table([COLUMNS, *map(_cells, rows)], caption)
    if found := gains(rows):
        text += "\n" + markdown_table([GAIN_COLUMNS, *map(_gain_cells, found)], _GAIN_CAPTION)
    return text


_GAIN_CAPTION = (
    "Wrong tokens of re-injection and of its control at equal distance, and the share of re-injection's gain over the "
    "deterministic flow that remains; 95 % bootstrap intervals over samples, paired."
)


def _cells(row: ExactRow) -> tuple[str, ...]:
    one = row.setting
    cap = "" if one.cap is None else f"{one.cap:g} {one.rule}"
    heat = "" if row.temperature is None else f"{row.temperature:.3f}{'' if row.matched else ' *'}"
    gamma = "" if one.num_steps is None else f"{one.reinjection:g}"
    steps = "" if one.num_steps is None else str(one.num_steps)
    kind = one.kind if one.matches is None else f"{one.kind}, as far as gamma {one.matches:g}"
    wrong = _mean_with_interval(row.wrong_shares, 100, "%")
    reached = (str(row.num_texts), str(row.num_latents_reached))
    return kind, f"{one.h:g}", cap, steps, gamma, heat, wrong, f"{row.distance:.2f}", f"{row.rms:.3f}", *reached


def _mean_with_interval(values: Sequence[float], factor: float, unit: str) -> str:
    table = torch.tensor(values, dtype=torch.float64)
    interval = _interval(table, lambda rows: rows.mean(-1))
    return f"{factor * float(table.mean()):.2f} {unit} ({factor * interval.low:.2f} - {factor * interval.high:.2f})"


def _gain_cells(gain: Gain) -> tuple[str, ...]:
    row, own = gain.row, gain.own
    one = row.setting
    share = "undetermined" if row.matched else "not matched"
    if gain.share is not None and gain.share_interval is not None:
        low, high = gain.share_interval.low, gain.share_interval.high
        share = f"{gain.share:.0%} ({low:.0%} - {high:.0%})"
    wrong = [_mean_with_interval(values.wrong_shares, 100, "%") for values in (own, row)]
    heat = f"{row.temperature:.3f}{'' if row.matched else ' *'}"
    settings = (f"{one.h:g}", str(one.num_steps), f"{own.setting.reinjection:g}", one.kind, heat)
    return *settings, f"{own.distance:.2f}", f"{row.distance:.2f}", *wrong, share
