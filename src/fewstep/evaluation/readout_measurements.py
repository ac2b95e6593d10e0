"""What is asked of any text decoder, ours or another's: one function a question. B examples, L tokens, P positions.

All definitions are those of :mod:`fewstep.diagnostics`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, Self

import torch
from torch import Tensor

from fewstep.diagnostics import (
    BoundaryPoints,
    CategoricalResponse,
    Dabi,
    Decode,
    Diagnostic,
    TokenConditionals,
    boundary_distance,
    boundary_width,
    cci_curve,
    dabi,
    dabi_flip,
    data_points,
    margins,
    noise_robustness,
    normal_boundary,
    rms,
    segment_boundary,
    token_accuracy,
    worst_direction,
)
from fewstep.diagnostics.dabi import RADII

NOISE_LEVELS = (0.0, 0.2, 0.4, 0.6, 0.8, 1.2, 2.0)
FEW = 16
"""Examples that dear measurements look at, at most."""
DRAWS_IN_A_BATCH = 128
"""Token sequences that an autoregressive readout draws side by side."""

Results = tuple[Diagnostic, ...]


class ReadoutSubject(Protocol):
    """A readout and what it is measured on.

    ``ids`` (B, L) are the tokens that the latents ``z`` (B, ...) stand for, ``positions`` (B, P) those looked at, and
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
        """The readout that decides every token by itself."""
        ...

    @property
    def examples_at_once(self) -> int | None:
        """Examples whose logits are held at once; None for all."""
        ...

    def conditionals(self, level: float) -> TokenConditionals:
        """The readout that decides token after token, for latents with noise of ``level``."""
        ...

    def committed(self) -> Decode:
        """The same with the text's own tokens before each position, as a decoder."""
        ...

    def noise(self, name: str) -> torch.Generator:
        """The source of noise of the measurement ``name``."""
        ...

    def first(self, num_examples: int, num_positions: int | None = None) -> Self:
        """The same with fewer examples and positions."""
        ...


@dataclass(frozen=True)
class DabiEffort:
    """How hard DABI is tried: at which radii beside the limit, with how many random directions and probes a point.

    See :func:`~fewstep.diagnostics.dabi`. Few directions a point will do, since all points share one mean.
    """

    radii: tuple[float, ...] = RADII
    num_isotropic: int = 4
    num_probes: int = 8

    def run(self, subject: ReadoutSubject, decode: Decode, points: BoundaryPoints, name: str) -> Dabi:
        """DABI of ``decode`` at ``points``."""
        return dabi(
            decode,
            CategoricalResponse(),
            points,
            rms=rms(subject.z),
            radii=self.radii,
            num_isotropic=self.num_isotropic,
            num_probes=self.num_probes,
            generator=subject.noise(name),
            name=name,
        )


FULL = DabiEffort()


def measure_dabi(subject: ReadoutSubject, *, effort: DabiEffort = FULL, segments: bool = True) -> Results:
    """DABI of the parallel readout: at boundaries along the normal and a segment (``segments``), and at data."""
    decode, z, positions = subject.decode, subject.z, subject.positions
    found = {"dabi": normal_boundary(decode, z, positions)}
    if segments:
        found["dabi_segment"] = segment_boundary(decode, z, z.roll(1, 0), positions)
    found["dabi_data"] = data_points(decode, z, positions)
    return tuple(effort.run(subject, decode, points, name) for name, points in found.items())


def measure_dabi_worst(subject: ReadoutSubject, *, effort: DabiEffort = FULL, num_iterations: int = 10) -> Results:
    """DABI where a segment crosses a boundary, in the direction of the largest response: no other exceeds it."""
    decode, z, noise = subject.decode, subject.z, subject.noise("worst_direction")
    points = segment_boundary(decode, z, z.roll(1, 0), subject.positions)
    points = worst_direction(decode, CategoricalResponse(), points, num_iterations=num_iterations, generator=noise)
    return (effort.run(subject, decode, points, "dabi_worst"),)


def measure_dabi_commit(subject: ReadoutSubject, *, effort: DabiEffort = FULL) -> Results:
    """DABI of the autoregressive readout, the text's own tokens standing before each position."""
    decode = subject.committed()
    points = normal_boundary(decode, subject.z, subject.positions)
    return (effort.run(subject, decode, points, "dabi_commit"),)


def measure_dabi_flip(subject: ReadoutSubject, *, num_isotropic: int = 12) -> Results:
    """How often a token flips along its normal and isotropically, in ``num_isotropic`` draws an example."""
    decode, noise = subject.decode, subject.noise("dabi_flip")
    return (dabi_flip(decode, subject.z, subject.positions, num_isotropic=num_isotropic, generator=noise),)


def measure_boundary_distance(subject: ReadoutSubject) -> Results:
    """How far data lies from a flip, and how wide the band of doubt around a boundary is there."""
    z, positions, noise = subject.z, subject.positions, subject.noise("boundary_distance")
    decode = subject.decode
    measured = margins(decode, z, positions)
    return (
        boundary_distance(decode, z, positions, generator=noise, measured=measured),
        boundary_width(decode, z, positions, generator=noise, measured=measured),
    )


def measure_noise_robustness(subject: ReadoutSubject) -> Results:
    """Token accuracy against displacement, isotropic and towards the runner-up."""
    decode = subject.decode
    real = torch.ones_like(subject.ids, dtype=torch.bool)
    noise = subject.noise("noise_robustness")
    return (noise_robustness(decode, subject.z, subject.ids, real, subject.positions, generator=noise),)


def measure_token_accuracy(subject: ReadoutSubject) -> Results:
    """How many tokens the parallel readout gets back from their own latents."""
    noise = subject.noise("token_accuracy")
    return (token_accuracy(subject.decode, subject.z, subject.ids, generator=noise),)


def measure_committed_accuracy(subject: ReadoutSubject) -> Results:
    """The same of the autoregressive readout, the text's own tokens standing before each position."""
    name = "token_accuracy_commit"
    return (token_accuracy(subject.committed(), subject.z, subject.ids, generator=subject.noise(name), name=name),)


def measure_cci_noise(subject: ReadoutSubject, *, levels: Sequence[float] = NOISE_LEVELS) -> Results:
    """CCI of the autoregressive readout at data with noise of ``levels``."""
    few = subject.first(FEW)
    return (
        cci_curve(
            few.conditionals,
            few.z,
            levels,
            draws_at_once=draws_in_a_batch(len(few.z)),
            examples_at_once=few.examples_at_once,
            generator=few.noise("cci_noise"),
        ),
    )


def draws_in_a_batch(num_examples: int) -> int:
    """How many sequences of each of ``num_examples`` latents are drawn side by side."""
    return max(1, DRAWS_IN_A_BATCH // num_examples)
