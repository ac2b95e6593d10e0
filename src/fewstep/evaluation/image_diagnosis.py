"""The image control: the same questions to a decoder without tokens. B examples, n numbers in one latent."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from fewstep.diagnostics import (
    BoundaryPoints,
    ContinuousResponse,
    Dabi,
    Diagnostic,
    dabi,
    data_segments,
    rms,
    segment_midpoint,
    worst_direction,
)
from fewstep.errors import UserError
from fewstep.evaluation.diagnosis import Diagnosis, Progress, choose, run_all
from fewstep.evaluation.diagnosis_protocol import diagnosis_protocol
from fewstep.evaluation.processes import Processes
from fewstep.evaluation.readout_measurements import DabiEffort
from fewstep.evaluation.subject import noise_source
from fewstep.model import SavedModel

IMAGE_EFFORT = DabiEffort(num_isotropic=12)
"""One point an example, and so more directions at each than in a text."""


class DecodesImages(Protocol):
    """What is measured of an image model: its decoder."""

    @property
    def decode(self) -> Callable[[Tensor], Tensor]:
        """Latents (B, ...) to images (B, C, H, W), differentiable in forward mode also."""
        ...


@dataclass(frozen=True)
class ImageSubject:
    """An image decoder and the latents ``z`` (B, ...) of held-out images; everything random comes from ``seed``."""

    model: DecodesImages
    z: Tensor
    seed: int

    def segments(self) -> BoundaryPoints:
        """Midpoints on the way from each latent to the next one."""
        return segment_midpoint(self.z, self.z.roll(1, 0))

    def dabi(self, points: BoundaryPoints, name: str) -> Dabi:
        """DABI of the decoder at ``points``."""
        return dabi(
            self.model.decode,
            ContinuousResponse(),
            points,
            rms=rms(self.z),
            radii=IMAGE_EFFORT.radii,
            num_isotropic=IMAGE_EFFORT.num_isotropic,
            num_probes=IMAGE_EFFORT.num_probes,
            generator=noise_source(self.seed, name),
            name=name,
        )


def measure_segment(subject: ImageSubject) -> tuple[Diagnostic, ...]:
    """Half-way between two images, along the way."""
    return (subject.dabi(subject.segments(), "dabi_segment"),)


def measure_data(subject: ImageSubject) -> tuple[Diagnostic, ...]:
    """At an image, towards another."""
    points = data_segments(subject.z, subject.z.roll(1, 0), None)
    return (subject.dabi(points, "dabi_data_segment"),)


def measure_worst(subject: ImageSubject) -> tuple[Diagnostic, ...]:
    """Half-way between two images, in the direction of the largest response: no other exceeds it."""
    noise = noise_source(subject.seed, "worst_direction")
    points = worst_direction(subject.model.decode, ContinuousResponse(), subject.segments(), generator=noise)
    return (subject.dabi(points, "dabi_worst"),)


IMAGE_MEASUREMENTS: Mapping[str, Callable[[ImageSubject], tuple[Diagnostic, ...]]] = {
    "dabi_segment": measure_segment,
    "dabi_data": measure_data,
    "dabi_worst": measure_worst,
}
"""Every question to an image decoder by its name."""


@torch.no_grad()
def make_image_subject(model: SavedModel, *, num_examples: int, seed: int) -> ImageSubject:
    """The latents of the first ``num_examples`` held-out images. Raises ``UserError`` where there are fewer, or one."""
    images = model.image_source().held_out()
    if not 2 <= num_examples <= len(images):
        raise UserError(f"examples is {num_examples}: expected a number from 2 to {len(images)}, the held-out images")
    autoencoder = model.image_autoencoder()
    device = next(autoencoder.parameters()).device
    return ImageSubject(autoencoder, autoencoder.encode(images[:num_examples].to(device)), seed)


def diagnose_images(
    subject: ImageSubject,
    model: str,
    *,
    only: Sequence[str] | None = None,
    progress: Progress | None = None,
    processes: Processes | None = None,
    data: Mapping[str, Any] | None = None,
) -> Diagnosis:
    """Measure an image model, called ``model``. ``only`` names some of :data:`IMAGE_MEASUREMENTS`.

    Several ``processes`` share them, see :func:`~fewstep.evaluation.diagnosis.run_all`. ``data`` names the images, for
    the protocol.

    Raises ``UserError`` for an unknown name.
    """
    chosen = choose(IMAGE_MEASUREMENTS, only)
    runs = {name: (lambda run=run: run(subject)) for name, run in chosen.items()}
    results = run_all(runs, progress, processes)
    return image_result(subject, model, results, data, packages=())


def image_result(
    subject: ImageSubject,
    model: str,
    results: tuple[Diagnostic, ...],
    data: Mapping[str, Any] | None,
    *,
    packages: tuple[str, ...],
    notes: tuple[str, ...] = (),
) -> Diagnosis:
    """``results`` of ``subject`` with what they share; ``packages`` are those beside torch that they depend on."""
    count = len(subject.z)
    protocol = diagnosis_protocol(
        seed=subject.seed,
        num_examples=count,
        num_positions=None,
        block_length=None,
        data=data,
        effort=IMAGE_EFFORT,
        packages=packages,
    )
    return Diagnosis("images", model, results, subject.z[0].numel(), count, None, subject.seed, {}, protocol, notes)
