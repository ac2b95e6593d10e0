"""One row of the image control's sweep and its columns in a table."""

from dataclasses import dataclass
from typing import Any, Literal

from fewstep.evaluation.columns import shown
from fewstep.metrics.intervals import Interval

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
