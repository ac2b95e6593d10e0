"""The image control: diagnostics of a decoder without tokens. Legend: B examples, n numbers in one latent."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from fewstep.diagnostics.accuracy import reconstruction_error
from fewstep.diagnostics.boundary import BoundaryPoints, segment_points, worst_direction
from fewstep.diagnostics.response import CONTINUOUS
from fewstep.diagnostics.result import Result
from fewstep.errors import UserError
from fewstep.evaluation.diagnosis import Diagnosis, Progress, diagnose
from fewstep.evaluation.measurement import Measurement, choose
from fewstep.evaluation.processes import Processes
from fewstep.evaluation.readout_measurements import DabiEffort
from fewstep.evaluation.subject import ImageSubject
from fewstep.lab.images.generator import image_autoencoder, images_of
from fewstep.model import SavedModel

IMAGE_EFFORT = DabiEffort(num_isotropic=12)
"""One point per example, and so more directions at each than in a text."""


def _segments(subject: ImageSubject) -> BoundaryPoints:
    """Midpoints of the segments from each latent to the next one."""
    return segment_points(subject.z, subject.z.roll(1, 0), "midpoint")


def _dabi(subject: ImageSubject, points: BoundaryPoints, name: str) -> Result:
    return IMAGE_EFFORT.run(subject, subject.decode, points, name, response=CONTINUOUS)


def measure_segment(subject: ImageSubject) -> Result:
    """DABI half-way between two images, along the segment."""
    return _dabi(subject, _segments(subject), "dabi_segment")


def measure_data(subject: ImageSubject) -> Result:
    """DABI at an image, in the direction of another."""
    return _dabi(subject, segment_points(subject.z, subject.z.roll(1, 0), "data"), "dabi_data_segment")


def measure_worst(subject: ImageSubject) -> Result:
    """DABI half-way between two images, in the direction of the largest response: an upper bound."""
    noise = subject.noise("worst_direction")
    points = worst_direction(subject.decode, CONTINUOUS, _segments(subject), generator=noise)
    return _dabi(subject, points, "dabi_worst")


def measure_reconstruction(subject: ImageSubject) -> Result:
    """Squared error of the images decoded from their own latents."""
    noise = subject.noise("reconstruction_error")
    return reconstruction_error(subject.decode, subject.z, subject.images, generator=noise)


IMAGE_MEASUREMENTS: Mapping[str, Measurement] = {
    "dabi_segment": Measurement(measure_segment),
    "dabi_data": Measurement(measure_data),
    "dabi_worst": Measurement(measure_worst),
}
"""Measurements of an image model, by name."""
DECODER_MEASUREMENTS = {"reconstruction": Measurement(measure_reconstruction), **IMAGE_MEASUREMENTS}
"""Those of a third-party image decoder."""


@torch.no_grad()
def make_image_subject(model: SavedModel, *, num_examples: int, seed: int) -> ImageSubject:
    """The latents of the first ``num_examples`` held-out images, at least 2."""
    images, autoencoder = images_of(model).held_out(), image_autoencoder(model)
    if not 2 <= num_examples <= len(images):
        raise UserError(f"examples is {num_examples}: expected a number from 2 to {len(images)}, the held-out images")
    device = next(autoencoder.parameters()).device
    images = images[:num_examples].to(device)
    return ImageSubject(autoencoder.decode, autoencoder.encode(images), seed, images)


def diagnose_images(
    subject: ImageSubject,
    model: str,
    *,
    only: Sequence[str] | None = None,
    progress: Progress | None = None,
    processes: Processes | None = None,
    data: Mapping[str, Any] | None = None,
) -> Diagnosis:
    """Measure an image model, called ``model``, by :data:`IMAGE_MEASUREMENTS`, or by those named in ``only``.

    Several ``processes`` share the measurements; ``data`` names the images, for the protocol.
    """
    chosen = choose(IMAGE_MEASUREMENTS, only)
    return diagnose(subject, chosen, model, effort=IMAGE_EFFORT, progress=progress, processes=processes, data=data)
