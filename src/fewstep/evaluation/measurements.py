"""Every measurement of a text model, by its name: what ``diagnose``, training callbacks and report read.

Legend: B examples, K latent positions of D dimensions, L tokens.
"""

from collections.abc import Sequence

import torch

from fewstep.diagnostics.boundary import normal_boundary
from fewstep.diagnostics.margins import boundary_distance, margins
from fewstep.diagnostics.result import Result
from fewstep.diagnostics.stiffness import stiffness
from fewstep.diagnostics.trajectories import decidedness, decision_step, late_flip_rate, unigram_collision
from fewstep.diagnostics.tube import tube
from fewstep.evaluation.adapters import (
    HeadConditionals,
    cci_as_read,
    continuation,
    estimate_of,
    reading,
    sampled,
    velocity_of,
)
from fewstep.evaluation.listening import listening, listening_curve
from fewstep.evaluation.measurement import Brief, Measurement, Threshold
from fewstep.evaluation.readout_measurements import (
    FEW,
    FULL,
    NOISE_LEVELS,
    DabiEffort,
    measure_boundary_distance,
    measure_cci_noise,
    measure_dabi,
    measure_dabi_flip,
    measure_dabi_head,
    measure_dabi_worst,
    measure_noise_robustness,
)
from fewstep.evaluation.subject import Subject

TIMES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
LOCAL = DabiEffort(radii=(), num_probes=4)
"""The local limit of DABI alone, for training."""


def measure_dabi_generated(subject: Subject, *, effort: DabiEffort = FULL) -> tuple[Result, ...]:
    """DABI of the parallel readout at boundaries next to latents that the flow generated, and their distance."""
    decode, z = subject.decode, sampled(subject).x_1
    points, noise = normal_boundary(decode, z, subject.positions), subject.noise("boundary_distance_generated")
    measured = margins(decode, z, subject.positions)
    return (
        effort.run(subject, decode, points, "dabi_generated"),
        boundary_distance(measured, z, generator=noise, name="boundary_distance_generated"),
    )


def measure_cci(subject: Subject, *, levels: Sequence[float] | None = NOISE_LEVELS) -> tuple[Result, ...]:
    """CCI of the head at generated latents, blurred as it reads them, and at data with noise of ``levels``.

    None: at generated latents alone, or without a denoiser at data with noise of the head's trust level.
    """
    head, few = subject.generator.model.commitment_head(), subject.first(FEW)
    results, generates = [], subject.generator.model.denoiser is not None
    if generates:
        results.append(cci_as_read(HeadConditionals(head, head.trust_level), sampled(few).x_1, few.noise("cci")))
    if levels is None:
        levels = () if generates else (head.trust_level,)
    if levels:
        results.append(measure_cci_noise(subject, levels=levels))
    return tuple(results)


def measure_listening(subject: Subject, *, levels: Sequence[float] = NOISE_LEVELS) -> tuple[Result, ...]:
    """Whether the head uses its latents: at the noise level that it blurs them by, and at ``levels``."""
    head, real = subject.generator.model.commitment_head(), torch.ones_like(subject.ids, dtype=torch.bool)
    z, ids = subject.z, subject.ids
    if len(z) < 2:  # there is no other text
        return ()
    return (
        listening(head, z, ids, real, head.trust_level, subject.noise("listening")),
        listening_curve(head, z, ids, real, levels, subject.noise("listening_noise")),
    )


def measure_decidedness(subject: Subject, *, num_continuations: int = 16, every: int = 1) -> Result:
    """Whether tokens are decided before the end of a trajectory, whatever noise comes, at every ``every``-th state."""
    few = subject.first(FEW)
    path = sampled(few)
    states = [(float(t), x_t) for t, x_t in zip(path.times[:-1], path.states[:-1], strict=True)][::every]
    return decidedness(
        continuation(few.generator, len(path.times) - 1, path.times),
        reading(few),
        states,
        num_continuations=num_continuations,
        unigram_collision=unigram_collision(subject.ids),
        generator=few.noise("commitment"),  # its first name: seeds depend on it
    )


def measure_late_flips(subject: Subject) -> tuple[Result, ...]:
    """When tokens stop changing along the deterministic trajectory."""
    predictions, noise = sampled(subject).predictions, subject.noise("late_flips")
    return (
        late_flip_rate(predictions, reading(subject), generator=noise),
        decision_step(predictions, reading(subject), generator=noise),
    )


def measure_tube(subject: Subject, *, times: Sequence[float] = TIMES) -> Result:
    """Theorem 3 as a curve: flips of the posterior mean against the mass next to a boundary."""
    flow, decode = subject.generator.model.flow(), subject.decode
    return tube(
        decode,
        estimate_of(flow),
        flow.path,
        subject.z,
        subject.positions,
        times,
        distances=margins(decode, subject.z, subject.positions).distance,
        generator=subject.noise("tube"),
    )


def measure_stiffness(subject: Subject, *, times: Sequence[float] = TIMES, num_iterations: int = 20) -> Result:
    """How much the velocity changes with the state, along noised data."""
    flow, few = subject.generator.model.flow(), subject.first(FEW)
    noise, x_0 = few.noise("stiffness"), few.starts("stiffness_start")
    states = []
    for time in times:
        t = torch.full((len(few.z),), time, device=few.z.device)
        states.append((time, flow.path.sample(few.z, x_0, t)))
    return stiffness(velocity_of(flow), states, num_iterations=num_iterations, generator=noise)


NOISE_LEVEL_RMS = 0.4
"""About the noise scale s = sigma / alpha of the last of 8 steps of the default grid (0.32 at t = 0.76)."""
HALF_WAY = 0.5
"""The time at which tokens should be decided."""
FEW_STEPS = 4
"""The number of steps that "few" means where a threshold needs one: the paper compares ODE and SDE at K = 4."""

MEASUREMENTS: dict[str, Measurement] = {
    "dabi": Measurement(
        measure_dabi,
        ("readout",),
        stages=("autoencoder",),
        brief=Brief(positions=1, options={"effort": LOCAL, "segments": False}),
        thresholds={
            "dabi / dabi_data": Threshold(
                "sensitivity along the boundary direction, at boundaries over at data",
                3.0,
                10.0,
                False,
                "A readout that is as soft at its boundaries as elsewhere has 1. Measured: an image decoder 1.4, the "
                "text readout 27. Ten lies between the two as an order of magnitude; the paper's own DABI, another "
                "definition, has about 1 for image decoders and more than 500 for text (arXiv:2606.30705).",
            ),
        },
    ),
    "dabi_worst": Measurement(measure_dabi_worst, ("readout",)),
    "dabi_flip": Measurement(
        measure_dabi_flip,
        ("readout",),
        stages=("autoencoder",),
        brief=Brief(share=2, options={"num_isotropic": 6}),
    ),
    "boundary_distance": Measurement(measure_boundary_distance, ("readout",), stages=("autoencoder",)),
    "noise_robustness": Measurement(
        measure_noise_robustness,
        ("readout",),
        stages=("autoencoder",),
        brief=Brief(share=2),
        thresholds={
            "noise_accuracy_at_0": Threshold(
                "token accuracy on clean latents",
                0.99,
                0.95,
                True,
                "Errors of the readout are a floor under everything after it: of texts of 32 tokens, 0.99 leaves 72 % "
                "without an error and 0.95 only 19 %. Measured: 0.998 and 0.999.",
                shares=True,
            ),
            f"noise_accuracy_at_{NOISE_LEVEL_RMS:g}": Threshold(
                f"token accuracy at {NOISE_LEVEL_RMS:g} rms of isotropic noise",
                0.9,
                0.5,
                True,
                "What a flow makes is off by about the noise of its last step, and 0.4 rms is about that of 8 steps. "
                "Measured: 0.952 and 0.968 for models that re-injection helps; under one half most tokens are lost.",
                shares=True,
            ),
        },
    ),
    "dabi_head": Measurement(
        measure_dabi_head,
        ("head",),
        stages=("head",),
        brief=Brief(share=4, positions=1, options={"effort": LOCAL}),
    ),
    "dabi_generated": Measurement(
        measure_dabi_generated,
        ("readout", "denoiser"),
        stages=("flow",),
        brief=Brief(share=2, positions=1, options={"effort": LOCAL}),
        thresholds={
            "boundary_distance_generated_p50 / boundary_distance_p50": Threshold(
                "median distance to a flip, generated latents over data",
                0.66,
                0.2,
                True,
                "Within the spread of data itself: there the 10 % quantile is 0.66 of the median and the 1 % quantile "
                "0.2 of it (measured on the quickstart's model). Below the latter, half of what the flow makes is "
                "closer to a flip than 99 % of data. Measured: 0.15.",
            ),
        },
    ),
    "cci": Measurement(
        measure_cci,
        ("head",),
        stages=("head",),
        brief=Brief(share=8, options={"levels": None}),
        thresholds={
            "cci": Threshold(
                "CCI, share of a token's uncertainty that the earlier tokens resolve",
                0.1,
                0.02,
                True,
                "A readout that does not look at earlier tokens has 0 by construction, a head that copies its first "
                "token of two has 1/2. Measured: 0.29 and 0.35; the same head with its view cut off 0.",
            ),
        },
    ),
    "listening": Measurement(
        measure_listening,
        ("head",),
        thresholds={
            "listening_gain_nats": Threshold(
                "nats per token that the head gains from its own latent",
                0.7,
                0.1,
                True,
                "0.7 nats halve the perplexity; under 0.1 it falls by less than a tenth, and the head is a language "
                "model. Measured: 2.8.",
            ),
        },
    ),
    "tube": Measurement(
        measure_tube,
        ("readout", "denoiser"),
        stages=("flow",),
        brief=Brief(share=2, options={"times": (0.1, 0.3, 0.5, 0.7, 0.8, 0.9)}),
        thresholds={
            "tube mass at the last step": Threshold(
                "share of data within reach of a boundary at the noise scale of the last step",
                0.02,
                0.1,
                False,
                "By Theorem 3 of arXiv:2606.30705 this is the rate at which the last step of a deterministic map flips"
                " tokens, so the numbers are those of the late flips.",
                shares=True,
            ),
        },
    ),
    "stiffness": Measurement(
        measure_stiffness,
        ("denoiser",),
        stages=("flow",),
        brief=Brief(share=4, options={"times": (0.6, 0.95), "num_iterations": 4}),
        thresholds={
            "stiffness before the last step": Threshold(
                f"stiffness times the step 1/{FEW_STEPS}, highest before the last step",
                1.0,
                2.0,
                False,
                "An explicit Euler step of length h is exact to first order where h times the largest singular value L"
                " of the velocity's Jacobian is small; from h L = 2 on it is unstable (the limit of linear stability)."
                " Times after the start of the last step are left out: there the velocity contracts at 1 / (1 - t) "
                "whatever the model knows.",
            ),
        },
    ),
    "late_flips": Measurement(
        measure_late_flips,
        ("readout", "denoiser"),
        stages=("flow",),
        brief=Brief(share=2),
        thresholds={
            "late_flip_rate": Threshold(
                "share of tokens that the last step changes",
                0.02,
                0.1,
                False,
                "2 % is under one token in a text of 32, 10 % more than three. Measured: 7 % after 8 deterministic "
                "steps, whose text is word salad. The share falls as the last step gets shorter, so read it together "
                "with the number of steps.",
                shares=True,
            ),
        },
    ),
    "decidedness": Measurement(
        measure_decidedness,
        ("readout", "denoiser"),
        stages=("flow",),
        brief=Brief(share=4, options={"num_continuations": 2, "every": 3}),
        thresholds={
            f"decidedness at t = {HALF_WAY:g}": Threshold(
                f"decidedness at t = {HALF_WAY:g} (0: as open as random tokens of the text, 1: decided)",
                0.5,
                0.2,
                True,
                "Half of the way to decided at half of the way to data would leave half of the steps for the rest. "
                "Measured: 0.08.",
            ),
        },
    ),
}
"""In the order of the table. Where to put a new one: here, or outside the package, named by its dotted path."""
