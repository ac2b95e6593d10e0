"""Every measurement, by its name: what ``diagnose``, training callbacks and report read."""

from collections.abc import Sequence

import torch

from fewstep.diagnostics.boundary import BoundaryPoints, data_points, normal_boundary, segment_points, worst_direction
from fewstep.diagnostics.cci import cci_curve
from fewstep.diagnostics.dabi import RADII, dabi
from fewstep.diagnostics.decoding import Decode, rms
from fewstep.diagnostics.displacement import dabi_flip, noise_robustness, reconstruction_error, token_accuracy
from fewstep.diagnostics.first_failure import first_failure
from fewstep.diagnostics.listening import listening, listening_curve
from fewstep.diagnostics.margins import boundary_distance, boundary_width, margins
from fewstep.diagnostics.response import CATEGORICAL, CONTINUOUS
from fewstep.diagnostics.result import Result
from fewstep.diagnostics.trajectories import decidedness, decision_step, late_flip_rate, stiffness, unigram_collision
from fewstep.diagnostics.tube import tube
from fewstep.evaluation.adapters import DRAWS_IN_A_BATCH, HeadConditionals, all_real, cci_as_read, continuation
from fewstep.evaluation.measurement import Effort, Measurement, Threshold
from fewstep.evaluation.subject import Subject

TIMES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
NOISE_LEVELS = (0.0, 0.2, 0.4, 0.6, 0.8, 1.2, 2.0)
FEW = 16
"""Examples of expensive measurements, at most."""
NUM_PROBES, NUM_LOCAL_PROBES = 8, 4
NUM_ITERATIONS = {"text": 10, "images": 20}
NUM_ISOTROPIC = {"text": 4, "images": 12}
"""Of DABI per point: probes of the trace, iterations to the worst direction, and random directions, of which few
suffice, since all points share one mean; an image has a single point."""


def _dabi(
    subject: Subject,
    points: BoundaryPoints,
    name: str,
    local: bool,
    decode: Decode | None = None,
    noise: str | None = None,
) -> Result:
    """DABI of ``decode`` (None: the subject's) at ``points``; ``noise`` names its source where that is not ``name``.

    ``local``: its local limit alone, from few probes, for training.
    """
    return dabi(
        decode or subject.decode,
        CATEGORICAL if subject.kind == "text" else CONTINUOUS,
        points,
        rms=rms(subject.z),
        radii=() if local else RADII,
        num_isotropic=NUM_ISOTROPIC[subject.kind],
        num_probes=NUM_LOCAL_PROBES if local else NUM_PROBES,
        generator=subject.noise(noise or name),
        name=name,
    )


def _measure_token_accuracy(subject: Subject) -> Result:
    return token_accuracy(subject.decode, subject.z, subject.data, generator=subject.noise("token_accuracy"))


def _measure_reconstruction(subject: Subject) -> Result:
    noise = subject.noise("reconstruction_error")
    return reconstruction_error(subject.decode, subject.z, subject.data, generator=noise)


def _measure_dabi(subject: Subject, *, local: bool = False) -> tuple[Result, ...]:
    """DABI of a parallel readout at boundaries, along the normal and (not ``local``) a segment, and at data.

    Images have no tokens, and so no boundary: half-way between two of them, and at data, along the segment.
    """
    if subject.kind == "images":
        at_data = segment_points(subject.z, subject.z.roll(1, 0), "data")
        points = {"dabi_segment": subject.segments, "dabi_data_segment": at_data}
    else:
        points = {"dabi": normal_boundary(subject.decode, subject.z, subject.positions)}
        points |= {} if local else {"dabi_segment": subject.segments}
        points["dabi_data"] = data_points(subject.margins, subject.z)
    return tuple(_dabi(subject, where, name, local) for name, where in points.items())


def _measure_dabi_worst(subject: Subject) -> Result:
    """DABI where a segment crosses a boundary, in the direction of the largest response: an upper bound."""
    points = worst_direction(
        subject.decode,
        CATEGORICAL if subject.kind == "text" else CONTINUOUS,
        subject.segments,
        num_iterations=NUM_ITERATIONS[subject.kind],
        generator=subject.noise("worst_direction"),
    )
    return _dabi(subject, points, "dabi_worst", local=False)


def _measure_dabi_flip(subject: Subject, *, num_isotropic: int = 12) -> Result:
    measured, noise = subject.margins, subject.noise("dabi_flip")
    return dabi_flip(
        subject.decode, subject.z, subject.positions, measured, num_isotropic=num_isotropic, generator=noise
    )


def _measure_first_failure(subject: Subject, *, num_random: int = 4) -> Result:
    measured, noise = subject.margins, subject.noise("first_failure")
    return first_failure(subject.decode, subject.z, subject.positions, measured, num_random=num_random, generator=noise)


def _measure_boundary_distance(subject: Subject) -> tuple[Result, ...]:
    at_data, noise = (subject.margins, subject.z), subject.noise("boundary_distance")
    return boundary_distance(*at_data, generator=noise), boundary_width(*at_data, generator=noise)


def _measure_noise_robustness(subject: Subject) -> Result:
    measured, noise = subject.margins, subject.noise("noise_robustness")
    return noise_robustness(subject.decode, subject.z, subject.data, subject.positions, measured, generator=noise)


def _measure_head_accuracy(subject: Subject) -> Result:
    noise = subject.noise("token_accuracy_commit")  # its first name: seeds depend on it
    return token_accuracy(subject.given_text(), subject.z, subject.data, generator=noise, name="token_accuracy_head")


def _measure_dabi_head(subject: Subject, *, local: bool = False) -> Result:
    decode, noise = subject.given_text(), "dabi_commit"  # its first name, as above
    points = normal_boundary(decode, subject.z, subject.positions)
    return _dabi(subject, points, "dabi_head", local, decode, noise)


def _measure_dabi_generated(subject: Subject, *, local: bool = False) -> tuple[Result, ...]:
    """DABI of the parallel readout at boundaries next to latents that the flow generated, and their distance."""
    decode, z = subject.decode, subject.trajectory.x_1
    points, name = normal_boundary(decode, z, subject.positions), "boundary_distance_generated"
    measured = margins(decode, z, subject.positions)
    return (
        _dabi(subject, points, "dabi_generated", local),
        boundary_distance(measured, z, generator=subject.noise(name), name=name),
    )


def _measure_cci(subject: Subject, *, levels: Sequence[float] | None = NOISE_LEVELS) -> tuple[Result, ...]:
    """CCI of the head at generated latents, blurred as it reads them, and at data with noise of ``levels``.

    None: at generated latents alone, or without a denoiser at data with noise of the head's trust level.
    """
    few, results, generates = subject.first(FEW), [], "denoiser" in subject.parts
    if generates and few.model is not None:
        head = HeadConditionals(few.model.commitment_head(), few.trust_level)
        results.append(cci_as_read(head, few.trajectory.x_1, few.noise("cci")))
    if levels is None:
        levels = () if generates else (subject.trust_level,)
    if levels:
        curve = cci_curve(
            few.read_head,
            few.z,
            levels,
            draws_at_once=max(1, DRAWS_IN_A_BATCH // len(few.z)),
            examples_at_once=few.examples_at_once,
            generator=few.noise("cci_noise"),
        )
        results.append(curve)
    return tuple(results)


def _measure_listening(subject: Subject, *, levels: Sequence[float] = NOISE_LEVELS) -> tuple[Result, ...]:
    read, z, ids = subject.read_head, subject.z, subject.data
    return (
        listening(read, z, ids, subject.trust_level, subject.noise("listening")),
        listening_curve(read, z, ids, levels, subject.noise("listening_noise")),
    )


def _measure_decidedness(subject: Subject, *, num_continuations: int = 16, every: int = 1) -> Result:
    """Whether tokens are decided before the end of a trajectory, whatever noise comes, at every ``every``-th state."""
    few = subject.first(FEW)
    assert few.model is not None
    path = few.trajectory
    states = [(float(t), x_t) for t, x_t in zip(path.times[:-1], path.states[:-1], strict=True)][::every]
    return decidedness(
        continuation(few.model, path.times),
        few.read,
        states,
        num_continuations=num_continuations,
        unigram_collision=unigram_collision(subject.data),
        generator=few.noise("commitment"),  # its first name: seeds depend on it
    )


def _measure_late_flips(subject: Subject) -> tuple[Result, ...]:
    read, noise = (subject.trajectory.predictions, subject.read), subject.noise("late_flips")
    return late_flip_rate(*read, generator=noise), decision_step(*read, generator=noise)


def _measure_tube(subject: Subject, *, times: Sequence[float] = TIMES) -> Result:
    flow = subject.flow
    return tube(
        subject.decode,
        lambda x_t, t: flow.denoise(x_t, t, mask=all_real(x_t)),
        flow.path,
        subject.z,
        subject.positions,
        times,
        distances=subject.margins.distance,
        generator=subject.noise("tube"),
    )


def _measure_stiffness(subject: Subject, *, times: Sequence[float] = TIMES, num_iterations: int = 20) -> Result:
    flow, few = subject.flow, subject.first(FEW)
    x_0 = few.starts("stiffness_start")
    return stiffness(
        lambda x_t, t: flow.velocity(x_t, t, mask=all_real(x_t)),
        [(t, flow.path.sample(few.z, x_0, torch.full((len(x_0),), t, device=x_0.device))) for t in times],
        num_iterations=num_iterations,
        generator=few.noise("stiffness"),
    )


ONE_IN_EACH = Effort(share=4, positions=1)
"""Of DABI by default: points of different examples say more than as many of one."""
HALF = Effort(share=2)
NOISE_LEVEL_RMS = 0.4
"""About the noise scale s = sigma / alpha of the last of 8 steps of the default grid (0.32 at t = 0.76)."""
HALF_WAY = 0.5
"""The time at which tokens should be decided."""
FEW_STEPS = 4
"""The number of steps that "few" means where a threshold needs one: the paper compares ODE and SDE at K = 4."""

MEASUREMENTS: dict[str, Measurement] = {
    "token_accuracy": Measurement(_measure_token_accuracy, kind="text"),
    "reconstruction": Measurement(_measure_reconstruction, kind="images"),
    "dabi": Measurement(
        _measure_dabi,
        stages=("autoencoder",),
        training=Effort(positions=1, options={"local": True}),
        default=ONE_IN_EACH,
        thresholds={
            "dabi / dabi_data": Threshold(
                "sensitivity along the boundary direction, at boundaries over at data",
                3.0,
                10.0,
                False,
                "A readout that is as soft at its boundaries as elsewhere has 1. Measured: an image decoder 1.4, the "
                "text readout 27; the paper's own DABI, another definition, has about 1 for image decoders and more "
                "than 500 for text (arXiv:2606.30705).",
            )
        },
    ),
    "dabi_worst": Measurement(_measure_dabi_worst, default=ONE_IN_EACH),
    "dabi_flip": Measurement(
        _measure_dabi_flip,
        kind="text",
        stages=("autoencoder",),
        training=Effort(share=2, options={"num_isotropic": 6}),
        default=HALF,
    ),
    "first_failure": Measurement(
        _measure_first_failure,
        kind="text",
        default=ONE_IN_EACH,
        thresholds={
            "first_failure_ratio": Threshold(
                "first-failure radius in a random direction over that in the boundary direction",
                3.0,
                10.0,
                False,
                "A ball-shaped cell has 1, a single flat boundary in n numbers about sqrt(n) / 0.67: then isotropic "
                "noise says little about errors that point at the boundary. Three and ten, as for DABI.",
            )
        },
    ),
    "boundary_distance": Measurement(_measure_boundary_distance, kind="text", stages=("autoencoder",)),
    "noise_robustness": Measurement(
        _measure_noise_robustness,
        kind="text",
        stages=("autoencoder",),
        training=Effort(share=2),
        default=HALF,
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
    "token_accuracy_head": Measurement(_measure_head_accuracy, ("head",), kind="text"),
    "dabi_head": Measurement(
        _measure_dabi_head,
        ("head",),
        kind="text",
        stages=("head",),
        training=Effort(share=4, positions=1, options={"local": True}),
        default=ONE_IN_EACH,
    ),
    "dabi_generated": Measurement(
        _measure_dabi_generated,
        ("denoiser",),
        kind="text",
        stages=("flow",),
        training=Effort(share=2, positions=1, options={"local": True}),
        default=ONE_IN_EACH,
        thresholds={
            "boundary_distance_generated_p50 / boundary_distance_p50": Threshold(
                "median distance to a flip, generated latents over data",
                0.66,
                0.2,
                True,
                "The 10 % and the 1 % quantile of data over its median (the quickstart's model): below the latter, "
                "half of what the flow makes is closer to a flip than 99 % of data. Measured: 0.15.",
            )
        },
    ),
    "cci": Measurement(
        _measure_cci,
        ("head",),
        kind="text",
        stages=("head",),
        training=Effort(share=8, options={"levels": None}),
        default=Effort(share=8, options={"levels": (0.4, 2.0)}),
        thresholds={
            "cci": Threshold(
                "CCI, share of a token's uncertainty that the earlier tokens resolve",
                0.1,
                0.02,
                True,
                "A readout that does not look at earlier tokens has 0 by construction, a head that copies its first "
                "token of two has 1/2. Measured: 0.29 and 0.35; the same head with its view cut off 0.",
            )
        },
    ),
    "listening": Measurement(
        _measure_listening,
        ("head",),
        kind="text",
        default=HALF,
        thresholds={
            "listening_gain_nats": Threshold(
                "nats per token that the head gains from its own latent",
                0.7,
                0.1,
                True,
                "0.7 nats halve the perplexity; under 0.1 the head is little but a language model. Measured: 2.8.",
            )
        },
    ),
    "tube": Measurement(
        _measure_tube,
        ("denoiser",),
        kind="text",
        stages=("flow",),
        training=Effort(share=2, options={"times": (0.1, 0.3, 0.5, 0.7, 0.8, 0.9)}),
        default=HALF,
        thresholds={
            "tube mass at the last step": Threshold(
                "share of data within reach of a boundary at the noise scale of the last step",
                0.02,
                0.1,
                False,
                "By Theorem 3 of arXiv:2606.30705 this is the rate at which the last step of a deterministic map flips"
                " tokens, so the numbers are those of the late flips.",
                shares=True,
            )
        },
    ),
    "stiffness": Measurement(
        _measure_stiffness,
        ("denoiser",),
        kind="text",
        stages=("flow",),
        training=Effort(share=4, options={"times": (0.6, 0.95), "num_iterations": 4}),
        default=Effort(share=8, options={"times": (0.2, 0.5, 0.8, 0.95), "num_iterations": 8}),
        thresholds={
            "stiffness before the last step": Threshold(
                f"stiffness times the step 1/{FEW_STEPS}, highest before the last step",
                1.0,
                2.0,
                False,
                "An Euler step of length h is unstable from h L = 2 on, L the largest singular value of the velocity's "
                "Jacobian (the limit of linear stability). Times after the start of the last step are left out: there "
                "the velocity contracts at 1 / (1 - t) whatever the model knows.",
            )
        },
    ),
    "late_flips": Measurement(
        _measure_late_flips,
        ("denoiser",),
        kind="text",
        stages=("flow",),
        training=Effort(share=2),
        thresholds={
            "late_flip_rate": Threshold(
                "share of tokens that the last step changes",
                0.02,
                0.1,
                False,
                "2 % is under one token in a text of 32, 10 % more than three. Measured: 7 % after 8 deterministic "
                "steps, whose text is word salad. A shorter last step has a lower share.",
                shares=True,
            )
        },
    ),
    "decidedness": Measurement(
        _measure_decidedness,
        ("denoiser",),
        kind="text",
        stages=("flow",),
        training=Effort(share=4, options={"num_continuations": 2, "every": 3}),
        default=Effort(share=8, options={"num_continuations": 4}),
        thresholds={
            f"decidedness at t = {HALF_WAY:g}": Threshold(
                f"decidedness at t = {HALF_WAY:g} (0: as open as random tokens of the text, 1: decided)",
                0.5,
                0.2,
                True,
                "Half decided half of the way to data leaves half of the steps for the rest. Measured: 0.08.",
            )
        },
    ),
}
"""In the order of the table. Where to put a new one: here, or outside the package, named by its dotted path."""
