"""What a diagnosis of a text model consists of: one function a question, in the order in which they are asked.

All definitions are those of :mod:`fewstep.diagnostics`; here they are put to a model's own parts.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from fewstep.diagnostics import (
    BoundaryPoints,
    CategoricalResponse,
    Dabi,
    Decode,
    Diagnostic,
    boundary_distance,
    boundary_width,
    cci_curve,
    commit_step,
    commitment,
    dabi,
    dabi_flip,
    data_points,
    late_flip_rate,
    margins,
    noise_robustness,
    normal_boundary,
    rms,
    segment_boundary,
    stiffness,
    tube,
    unigram_collision,
    worst_direction,
)
from fewstep.diagnostics.dabi import RADII
from fewstep.evaluation.adapters import (
    HeadConditionals,
    cci_as_read,
    continuation,
    decoder_of,
    draws_in_a_batch,
    estimate_of,
    reading,
    sampled,
    velocity_of,
)
from fewstep.evaluation.listening import listening, listening_curve
from fewstep.evaluation.subject import Subject
from fewstep.evaluation.trade_off import trade_off

TIMES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
NOISE_LEVELS = (0.0, 0.2, 0.4, 0.6, 0.8, 1.2, 2.0)
FEW = 16
"""Examples that dear measurements look at, at most."""

Results = tuple[Diagnostic, ...]


@dataclass(frozen=True)
class Measurement:
    """``parts`` of the model that it needs, and ``run``, which makes its results."""

    parts: tuple[str, ...]
    run: Callable[[Subject], Results]


@dataclass(frozen=True)
class DabiEffort:
    """How hard DABI is tried: at which radii beside the limit, with how many random directions and probes a point.

    See :func:`~fewstep.diagnostics.dabi`. Few directions a point will do, since all points share one mean.
    """

    radii: tuple[float, ...] = RADII
    num_isotropic: int = 4
    num_probes: int = 8

    def run(self, subject: Subject, decode: Decode, points: BoundaryPoints, name: str) -> Dabi:
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


def measure_dabi(subject: Subject, *, effort: DabiEffort = FULL, segments: bool = True) -> Results:
    """DABI of the parallel readout: at boundaries along the normal and a segment (``segments``), and at data."""
    decode, z, positions = decoder_of(subject.generator.bundle.reader()), subject.z, subject.positions
    found = {"dabi": normal_boundary(decode, z, positions)}
    if segments:
        found["dabi_segment"] = segment_boundary(decode, z, z.roll(1, 0), positions)
    found["dabi_data"] = data_points(decode, z, positions)
    return tuple(effort.run(subject, decode, points, name) for name, points in found.items())


def measure_dabi_worst(subject: Subject, *, effort: DabiEffort = FULL, num_iterations: int = 10) -> Results:
    """DABI where a segment crosses a boundary, in the direction of the largest response: no other exceeds it."""
    decode, z, noise = decoder_of(subject.generator.bundle.reader()), subject.z, subject.noise("worst_direction")
    points = segment_boundary(decode, z, z.roll(1, 0), subject.positions)
    points = worst_direction(decode, CategoricalResponse(), points, num_iterations=num_iterations, generator=noise)
    return (effort.run(subject, decode, points, "dabi_worst"),)


def measure_dabi_commit(subject: Subject, *, effort: DabiEffort = FULL) -> Results:
    """DABI of the commitment head, the text's own tokens standing before each position."""
    head = subject.generator.bundle.head()
    decode = HeadConditionals(head, 0.0).given(subject.ids)
    points = normal_boundary(decode, subject.z, subject.positions)
    return (effort.run(subject, decode, points, "dabi_commit"),)


def measure_dabi_generated(subject: Subject, *, effort: DabiEffort = FULL) -> Results:
    """DABI of the parallel readout at boundaries next to latents that the flow made."""
    decode, z = decoder_of(subject.generator.bundle.reader()), sampled(subject).x_1
    points = normal_boundary(decode, z, subject.positions)
    noise = subject.noise("boundary_distance_generated")
    return (
        effort.run(subject, decode, points, "dabi_generated"),
        boundary_distance(decode, z, subject.positions, generator=noise, name="boundary_distance_generated"),
    )


def measure_dabi_flip(subject: Subject, *, num_isotropic: int = 12) -> Results:
    """How often a token flips along its normal and isotropically, in ``num_isotropic`` draws an example."""
    decode, noise = decoder_of(subject.generator.bundle.reader()), subject.noise("dabi_flip")
    return (dabi_flip(decode, subject.z, subject.positions, num_isotropic=num_isotropic, generator=noise),)


def measure_boundary_distance(subject: Subject) -> Results:
    """How far data lies from a flip, and how wide the band of doubt around a boundary is there."""
    z, positions, noise = subject.z, subject.positions, subject.noise("boundary_distance")
    decode = decoder_of(subject.generator.bundle.reader())
    measured = margins(decode, z, positions)
    return (
        boundary_distance(decode, z, positions, generator=noise, measured=measured),
        boundary_width(decode, z, positions, generator=noise, measured=measured),
    )


def measure_noise_robustness(subject: Subject) -> Results:
    """Token accuracy against displacement, isotropic and towards the runner-up."""
    decode = decoder_of(subject.generator.bundle.reader())
    real = torch.ones_like(subject.ids, dtype=torch.bool)
    noise = subject.noise("noise_robustness")
    return (noise_robustness(decode, subject.z, subject.ids, real, subject.positions, generator=noise),)


def measure_cci(subject: Subject, *, levels: Sequence[float] = NOISE_LEVELS) -> Results:
    """CCI of the commitment head: at generated latents as it reads them, and at data with noise of ``levels``."""
    head, few = subject.generator.bundle.head(), subject.first(FEW)
    results: list[Diagnostic] = []
    if subject.generator.bundle.denoiser is not None:
        results.append(cci_as_read(HeadConditionals(head, head.trust_level), sampled(few).x_1, few.noise("cci")))
    if levels:
        noise = few.noise("cci_noise")
        heads = lambda level: HeadConditionals(head, level)  # noqa: E731
        at_once = draws_in_a_batch(len(few.z))
        results.append(cci_curve(heads, few.z, levels, draws_at_once=at_once, generator=noise))
    return tuple(results)


def measure_listening(subject: Subject, *, levels: Sequence[float] = NOISE_LEVELS) -> Results:
    """Whether the head listens to its latents: at the noise that it blurs them by, and at ``levels``."""
    head, real = subject.generator.bundle.head(), torch.ones_like(subject.ids, dtype=torch.bool)
    z, ids = subject.z, subject.ids
    if len(z) < 2:  # there is no other text
        return ()
    results: list[Diagnostic] = [listening(head, z, ids, real, head.trust_level, subject.noise("listening"))]
    if levels:
        results.append(listening_curve(head, z, ids, real, levels, subject.noise("listening_noise")))
    return tuple(results)


def measure_commitment(subject: Subject, *, num_continuations: int = 16, every: int = 1) -> Results:
    """Whether tokens are decided before the end of a trajectory, whatever noise comes, at every ``every``-th state."""
    few = subject.first(FEW)
    path = sampled(few)
    states = [(float(t), x_t) for t, x_t in zip(path.times[:-1], path.states[:-1], strict=True)][::every]
    return (
        commitment(
            continuation(few.generator, len(path.times) - 1, path.times),
            reading(few),
            states,
            num_continuations=num_continuations,
            unigram_collision=unigram_collision(subject.ids),
            generator=few.noise("commitment"),
        ),
    )


def measure_late_flips(subject: Subject) -> Results:
    """When tokens stop changing along the deterministic trajectory."""
    predictions, noise = sampled(subject).predictions, subject.noise("late_flips")
    return (
        late_flip_rate(predictions, reading(subject), generator=noise),
        commit_step(predictions, reading(subject), generator=noise),
    )


def measure_tube(subject: Subject, *, times: Sequence[float] = TIMES) -> Results:
    """Theorem 3 as a curve: flips of the posterior mean against the mass next to a boundary."""
    flow = subject.generator.bundle.flow()
    decode = decoder_of(subject.generator.bundle.reader())
    return (
        tube(
            decode,
            estimate_of(flow),
            flow.path,
            subject.z,
            subject.positions,
            times,
            distances=margins(decode, subject.z, subject.positions).distance,
            generator=subject.noise("tube"),
        ),
    )


def measure_stiffness(subject: Subject, *, times: Sequence[float] = TIMES, num_iterations: int = 20) -> Results:
    """How much a velocity changes with the state, along noised data."""
    flow, few = subject.generator.bundle.flow(), subject.first(FEW)
    noise, x_0 = few.noise("stiffness"), few.starts("stiffness_start")
    states = []
    for time in times:
        t = torch.full((len(few.z),), time, device=few.z.device)
        states.append((time, flow.path.sample(few.z, x_0, t)))
    return (stiffness(velocity_of(flow), states, num_iterations=num_iterations, generator=noise),)


MEASUREMENTS: dict[str, Measurement] = {
    "dabi": Measurement(("readout",), measure_dabi),
    "dabi_worst": Measurement(("readout",), measure_dabi_worst),
    "dabi_flip": Measurement(("readout",), measure_dabi_flip),
    "boundary_distance": Measurement(("readout",), measure_boundary_distance),
    "noise_robustness": Measurement(("readout",), measure_noise_robustness),
    "dabi_commit": Measurement(("commitment",), measure_dabi_commit),
    "dabi_generated": Measurement(("readout", "denoiser"), measure_dabi_generated),
    "cci": Measurement(("commitment",), measure_cci),
    "listening": Measurement(("commitment",), measure_listening),
    "tube": Measurement(("readout", "denoiser"), measure_tube),
    "stiffness": Measurement(("denoiser",), measure_stiffness),
    "late_flips": Measurement(("readout", "denoiser"), measure_late_flips),
    "commitment": Measurement(("readout", "denoiser"), measure_commitment),
    "trade_off": Measurement(("readout", "denoiser", "language_model"), lambda subject: (trade_off(subject),)),
}
"""Every question by its name, in the order of the table."""
