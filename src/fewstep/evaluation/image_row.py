"""One row of the image control's sweep, the table that rows stand in, and their picture as data."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from fewstep.diagnostics import Picture, Series
from fewstep.errors import UserError
from fewstep.evaluation.columns import aligned_columns, markdown_table, shown
from fewstep.metrics import Interval

YARDSTICK = "train images"
"""Name of the rows of real images."""
COLUMNS = (
    "images",
    "reinjection",
    "K",
    "NFE",
    "FD latents",
    "95 % interval",
    "x real",
    "FD pixels",
    "95 % interval",
    "x real",
    "off the flow",
    "stiffness",
    "images / s",
    "N",
)
Space = Literal["latents", "pixels"]


@dataclass(frozen=True)
class ImageSetting:
    """What a row is about: the name of the model, steps and re-injection strength; both None for the yardstick."""

    name: str
    num_steps: int | None = None
    reinjection: float | None = None


@dataclass(frozen=True)
class ImageRow:
    """What was measured on ``num_samples`` images for each of ``seeds``.

    ``latents`` and ``pixels``: Frechet distance to the decoded held-out images, in the whitened latents of the model's
    autoencoder and in average-pooled pixels; the mean over seeds, with Student's 95 % interval over them (None for one
    seed) and the seeds' own values. ``off_flow``: rms difference of an image from what the base flow makes of the same
    noise in many deterministic steps, over the rms deviation of those from their mean image (0: the same, 1.4:
    unrelated); None without a base flow. ``stiffness_peak``: highest mean of the largest singular value of dv/dx over
    the states that the sampler passed. ``nfe`` evaluations an image, ``seconds`` from noise to images for all seeds.
    ``model`` and ``objective`` tell which model it was (the yardstick's is the autoencoder alone); rows compare where
    ``protocol_hash`` is equal.
    """

    setting: ImageSetting
    objective: str
    model: str
    num_samples: int
    seeds: tuple[int, ...]
    latents: float
    latents_interval: Interval | None
    latents_by_seed: tuple[float, ...]
    pixels: float
    pixels_interval: Interval | None
    pixels_by_seed: tuple[float, ...]
    off_flow: float | None
    stiffness_peak: float | None
    nfe: int | None
    seconds: float | None
    protocol_hash: str
    protocol: dict[str, Any]

    def value(self, space: Space) -> tuple[float, Interval | None]:
        """The distance in one space, with its interval."""
        if space == "latents":
            return self.latents, self.latents_interval
        return self.pixels, self.pixels_interval

    def cells(self, real: "ImageRow | None") -> tuple[str, ...]:
        """The row as strings, one for each of ``COLUMNS``; ``real`` is the yardstick."""
        found = [self.setting.name, shown(self.setting.reinjection, "g"), shown(self.setting.num_steps, "d")]
        found.append(shown(self.nfe, "d"))
        for space in ("latents", "pixels"):
            value, interval = self.value(space)
            found += [f"{value:.3g}", "" if interval is None else f"{interval.low:.3g} - {interval.high:.3g}"]
            found.append("" if real is None else f"{value / real.value(space)[0]:.2f}")
        speed = self.num_samples * len(self.seeds) / self.seconds if self.seconds else None
        found += [shown(self.off_flow, ".3f"), shown(self.stiffness_peak, ".1f"), shown(speed, ",.1f")]
        return (*found, str(self.num_samples))

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "ImageRow":
        """The inverse of ``to_dict``, also after a way through JSON. Raises ``KeyError`` for values that are none."""
        if set(values) != {item.name for item in fields(cls)}:
            raise KeyError("keys of another version")
        names = ("latents_interval", "pixels_interval")
        intervals = {name: None if values[name] is None else Interval(**values[name]) for name in names}
        lists = {name: tuple(values[name]) for name in ("seeds", "latents_by_seed", "pixels_by_seed")}
        return cls(**{**values, **intervals, **lists, "setting": ImageSetting(**values["setting"])})

    def to_dict(self) -> dict[str, Any]:
        """Plain values, fit for JSON."""
        return asdict(self)


def image_sweep_text(rows: Sequence[ImageRow], caption: str) -> str:
    """Aligned columns for a terminal, with the caption below."""
    return aligned_columns(_lines(rows), (0,)) + "\n" + caption


def image_sweep_markdown(rows: Sequence[ImageRow], caption: str) -> str:
    """A Markdown table with its caption below."""
    return markdown_table(_lines(rows), caption)


def contrast(rows: Sequence[ImageRow], space: Space = "latents") -> Picture:
    """Frechet distance over that of as many train images, by steps: one line for each model and strength, 1 is real.

    Intervals are those over seeds, without the yardstick's own uncertainty. Raises ``UserError`` without a yardstick.
    """
    real = _yardstick(rows)
    if real is None:
        raise UserError(f"no row of {YARDSTICK}: the distances have nothing to be compared with")
    unit, lines = real.value(space)[0], []
    for name, strength in dict.fromkeys((row.setting.name, row.setting.reinjection) for row in _made(rows)):
        mine = [row for row in _made(rows) if (row.setting.name, row.setting.reinjection) == (name, strength)]
        mine.sort(key=lambda row: row.setting.num_steps or 0)
        y = [row.value(space)[0] / unit for row in mine]
        bounds = [row.value(space)[1] or Interval(row.value(space)[0], row.value(space)[0]) for row in mine]
        lines.append(
            Series(
                f"{name}, gamma = {strength:g}",
                tuple(float(row.setting.num_steps or 0) for row in mine),
                tuple(y),
                tuple(max(bound.low, 0.0) / unit for bound in bounds),
                tuple(bound.high / unit for bound in bounds),
            )
        )
    title = f"Images in few steps ({space})"
    return Picture(title, "steps K", "Frechet distance / that of real images", tuple(lines), log_x=True, log_y=True)


def _made(rows: Iterable[ImageRow]) -> list[ImageRow]:
    return [row for row in rows if row.setting.num_steps is not None]


def _yardstick(rows: Iterable[ImageRow]) -> ImageRow | None:
    return next((row for row in rows if row.setting == ImageSetting(YARDSTICK)), None)


def _lines(rows: Sequence[ImageRow]) -> list[tuple[str, ...]]:
    real = _yardstick(rows)
    return [COLUMNS, *(row.cells(real) for row in rows)]
