"""Measurements of any text decoder, ours or another's: one function for each question.

Legend: B examples, L tokens, P positions, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, Self

import torch
from torch import Tensor

from fewstep.diagnostics.accuracy import noise_robustness, token_accuracy
from fewstep.diagnostics.boundary import BoundaryPoints, data_points, normal_boundary, segment_boundary, worst_direction
from fewstep.diagnostics.cci import TokenConditionals, cci_curve
from fewstep.diagnostics.dabi import RADII, dabi
from fewstep.diagnostics.decoding import Decode, rms
from fewstep.diagnostics.flips import dabi_flip
from fewstep.diagnostics.margins import boundary_distance, boundary_width, margins
from fewstep.diagnostics.response import CATEGORICAL, Response
from fewstep.diagnostics.result import Result
from fewstep.evaluation.subject import ImageSubject

NOISE_LEVELS = (0.0, 0.2, 0.4, 0.6, 0.8, 1.2, 2.0)
FEW = 16
"""Examples of expensive measurements, at most."""
DRAWS_IN_A_BATCH = 128
"""Token sequences that an autoregressive readout draws side by side."""


class ReadoutSubject(Protocol):
    """A readout and the data that it is measured on.

    ``ids`` (B, L) are the tokens that the latents ``z`` (B, ...) stand for, ``positions`` (B, P) those measured, and
    ``decode`` gives logits (B, L, V).
    """

    @property
    def ids(self) -> Tensor:
        """(B, L) int64."""
        ...

    @property
    def z(self) -> Tensor:
        """(B, ...), of an rms of about 1: noise levels are in its unit."""
        ...

    @property
    def positions(self) -> Tensor:
        """(B, P) int64."""
        ...

    @property
    def decode(self) -> Decode:
        """The parallel readout: it decides every token by itself."""
        ...

    @property
    def examples_at_once(self) -> int | None:
        """Examples whose logits are held at once; None for all."""
        ...

    def conditionals(self, level: float) -> TokenConditionals:
        """The autoregressive readout, for latents with noise of ``level``."""
        ...

    def given_text(self) -> Decode:
        """That readout as a decoder, given the text's own tokens before each position."""
        ...

    @property
    def seed(self) -> int:
        """Everything random comes from it."""
        ...

    def noise(self, name: str) -> torch.Generator:
        """The source of noise of the measurement ``name``."""
        ...

    def first(self, num_examples: int, num_positions: int | None = None) -> Self:
        """The same with fewer examples and positions."""
        ...


@dataclass(frozen=True)
class DabiEffort:
    """Radii beside the local limit, random directions and probes per point, for :func:`~fewstep.diagnostics.dabi.dabi`.

    Few directions per point suffice, since all points share one mean.
    """

    radii: tuple[float, ...] = RADII
    num_isotropic: int = 4
    num_probes: int = 8

    def run(
        self,
        subject: ReadoutSubject | ImageSubject,
        decode: Decode,
        points: BoundaryPoints,
        name: str,
        noise: str | None = None,
        response: Response | None = None,
    ) -> Result:
        """DABI of ``decode`` at ``points``; ``noise`` names the source of noise where it is not called ``name``."""
        return dabi(
            decode,
            CATEGORICAL if response is None else response,
            points,
            rms=rms(subject.z),
            radii=self.radii,
            num_isotropic=self.num_isotropic,
            num_probes=self.num_probes,
            generator=subject.noise(noise or name),
            name=name,
        )


FULL = DabiEffort()


def measure_dabi(subject: ReadoutSubject, *, effort: DabiEffort = FULL, segments: bool = True) -> tuple[Result, ...]:
    """DABI of the parallel readout at boundaries, along the normal and a segment (``segments``), and at data."""
    decode, z, positions = subject.decode, subject.z, subject.positions
    points = {"dabi": normal_boundary(decode, z, positions)}
    if segments:
        points["dabi_segment"] = segment_boundary(decode, z, z.roll(1, 0), positions)
    points["dabi_data"] = data_points(decode, z, positions)
    return tuple(effort.run(subject, decode, where, name) for name, where in points.items())


def measure_dabi_worst(subject: ReadoutSubject, *, effort: DabiEffort = FULL, num_iterations: int = 10) -> Result:
    """DABI where a segment crosses a boundary, in the direction of the largest response: an upper bound."""
    decode, z, noise = subject.decode, subject.z, subject.noise("worst_direction")
    points = segment_boundary(decode, z, z.roll(1, 0), subject.positions)
    points = worst_direction(decode, CATEGORICAL, points, num_iterations=num_iterations, generator=noise)
    return effort.run(subject, decode, points, "dabi_worst")


def measure_dabi_head(subject: ReadoutSubject, *, effort: DabiEffort = FULL) -> Result:
    """DABI of the autoregressive readout, given the text's own tokens before each position."""
    decode = subject.given_text()
    points = normal_boundary(decode, subject.z, subject.positions)
    return effort.run(subject, decode, points, "dabi_head", noise="dabi_commit")  # its first name: seeds depend on it


def measure_dabi_flip(subject: ReadoutSubject, *, num_isotropic: int = 12) -> Result:
    """How often a token flips along its normal and isotropically, in ``num_isotropic`` draws per example."""
    noise = subject.noise("dabi_flip")
    return dabi_flip(subject.decode, subject.z, subject.positions, num_isotropic=num_isotropic, generator=noise)


def measure_boundary_distance(subject: ReadoutSubject) -> tuple[Result, ...]:
    """How far data lies from a flip, and how wide the band around a boundary is there."""
    noise, measured = subject.noise("boundary_distance"), margins(subject.decode, subject.z, subject.positions)
    return (
        boundary_distance(measured, subject.z, generator=noise),
        boundary_width(measured, subject.z, generator=noise),
    )


def measure_noise_robustness(subject: ReadoutSubject) -> Result:
    """Token accuracy against displacement, isotropic and towards the runner-up."""
    real, noise = torch.ones_like(subject.ids, dtype=torch.bool), subject.noise("noise_robustness")
    return noise_robustness(subject.decode, subject.z, subject.ids, real, subject.positions, generator=noise)


def measure_token_accuracy(subject: ReadoutSubject) -> Result:
    """Share of the tokens that the parallel readout reads correctly from their own latents."""
    return token_accuracy(subject.decode, subject.z, subject.ids, generator=subject.noise("token_accuracy"))


def measure_head_accuracy(subject: ReadoutSubject) -> Result:
    """The same of the autoregressive readout, given the text's own tokens before each position."""
    noise = subject.noise("token_accuracy_commit")  # its first name: seeds depend on it
    return token_accuracy(subject.given_text(), subject.z, subject.ids, generator=noise, name="token_accuracy_head")


def measure_cci_noise(subject: ReadoutSubject, *, levels: Sequence[float] = NOISE_LEVELS) -> Result:
    """CCI of the autoregressive readout at data with noise of ``levels``."""
    few = subject.first(FEW)
    return cci_curve(
        few.conditionals,
        few.z,
        levels,
        draws_at_once=draws_in_a_batch(len(few.z)),
        examples_at_once=few.examples_at_once,
        generator=few.noise("cci_noise"),
    )


def draws_in_a_batch(num_examples: int) -> int:
    """How many sequences of each of ``num_examples`` latents are drawn side by side."""
    return max(1, DRAWS_IN_A_BATCH // num_examples)
