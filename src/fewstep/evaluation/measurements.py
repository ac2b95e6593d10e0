"""What a diagnosis of a text model consists of: one function a question, in the order in which they are asked.

All definitions are those of :mod:`fewstep.diagnostics`; here they are put to a model's own parts.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from fewstep.diagnostics import (
    Diagnostic,
    boundary_distance,
    commit_step,
    commitment,
    late_flip_rate,
    margins,
    normal_boundary,
    stiffness,
    tube,
    unigram_collision,
)
from fewstep.evaluation.adapters import (
    HeadConditionals,
    cci_as_read,
    continuation,
    decoder_of,
    estimate_of,
    reading,
    sampled,
    velocity_of,
)
from fewstep.evaluation.listening import listening, listening_curve
from fewstep.evaluation.readout_measurements import (
    FEW,
    FULL,
    NOISE_LEVELS,
    DabiEffort,
    Results,
    measure_boundary_distance,
    measure_cci_noise,
    measure_dabi,
    measure_dabi_commit,
    measure_dabi_flip,
    measure_dabi_worst,
    measure_noise_robustness,
)
from fewstep.evaluation.subject import Subject

TIMES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)


@dataclass(frozen=True)
class Measurement:
    """``parts`` of the model that it needs, and ``run``, which makes its results."""

    parts: tuple[str, ...]
    run: Callable[[Subject], Results]


def measure_dabi_generated(subject: Subject, *, effort: DabiEffort = FULL) -> Results:
    """DABI of the parallel readout at boundaries next to latents that the flow made."""
    decode, z = decoder_of(subject.generator.bundle.reader()), sampled(subject).x_1
    points = normal_boundary(decode, z, subject.positions)
    noise = subject.noise("boundary_distance_generated")
    return (
        effort.run(subject, decode, points, "dabi_generated"),
        boundary_distance(decode, z, subject.positions, generator=noise, name="boundary_distance_generated"),
    )


def measure_cci(subject: Subject, *, levels: Sequence[float] = NOISE_LEVELS) -> Results:
    """CCI of the commitment head: at generated latents as it reads them, and at data with noise of ``levels``."""
    head, few = subject.generator.bundle.commitment_head(), subject.first(FEW)
    results: list[Diagnostic] = []
    if subject.generator.bundle.denoiser is not None:
        results.append(cci_as_read(HeadConditionals(head, head.trust_level), sampled(few).x_1, few.noise("cci")))
    if levels:
        results += measure_cci_noise(subject, levels=levels)
    return tuple(results)


def measure_listening(subject: Subject, *, levels: Sequence[float] = NOISE_LEVELS) -> Results:
    """Whether the head listens to its latents: at the noise that it blurs them by, and at ``levels``."""
    head, real = subject.generator.bundle.commitment_head(), torch.ones_like(subject.ids, dtype=torch.bool)
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
    "dabi_commit": Measurement(("head",), measure_dabi_commit),
    "dabi_generated": Measurement(("readout", "denoiser"), measure_dabi_generated),
    "cci": Measurement(("head",), measure_cci),
    "listening": Measurement(("head",), measure_listening),
    "tube": Measurement(("readout", "denoiser"), measure_tube),
    "stiffness": Measurement(("denoiser",), measure_stiffness),
    "late_flips": Measurement(("readout", "denoiser"), measure_late_flips),
    "commitment": Measurement(("readout", "denoiser"), measure_commitment),
}
"""Every question by its name, in the order of the table."""
