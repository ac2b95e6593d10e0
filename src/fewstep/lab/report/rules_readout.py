"""Rules about the readout and about the latents that reach it."""

from itertools import pairwise

from fewstep.diagnostics.result import Series
from fewstep.evaluation.measurements import HALF_WAY, NOISE_LEVEL_RMS
from fewstep.lab.report.evidence import PARALLEL, Evidence, escapes, judged_steps, ways_out
from fewstep.lab.report.rules import DIAGNOSE, Outcome, Rule
from fewstep.lab.report.thresholds import (
    DECIDED_HALF_WAY,
    GENERATED_DISTANCE,
    LATE_FLIPS,
    NOISE_ACCURACY,
    SHARPNESS_RATIO,
    TOKEN_ACCURACY,
    TUBE_MASS,
)
from fewstep.lab.report.wording import figure, percent

NEAR = 0.15
"""A state farther than this from :data:`HALF_WAY` says nothing about half-way."""
TRAIN_AUTOENCODER = (
    "Train the autoencoder first: longer, or with more latent dimensions a token; no sampler mends what it cannot read."
)
TRAIN_NOISED = (
    "Train the autoencoder with noised latents (noise_level_max and token_masking in configs/autoencoder.yaml)."
)
SOFTER = "A softer readout would help: an autoencoder trained with hidden tokens and noised latents."


def reads_clean_latents(evidence: Evidence) -> Outcome | None:
    """Token accuracy."""
    value = evidence.token_accuracy()
    if value is None:
        return None
    state = TOKEN_ACCURACY.state(value)
    found = f"The readout gives back {percent(value)} of the tokens from their own clean latents."
    return Outcome(state, percent(value), found, "" if state == "good" else TRAIN_AUTOENCODER)


def reads_under_noise(evidence: Evidence) -> Outcome | None:
    """Token accuracy under isotropic noise."""
    value = evidence.value(f"noise_accuracy_at_{NOISE_LEVEL_RMS:g}")
    if value is None:
        return None
    state = NOISE_ACCURACY.state(value)
    found = f"With isotropic noise of {NOISE_LEVEL_RMS:g} rms it still reads {percent(value)}."
    aligned = evidence.value(f"aligned_accuracy_at_{NOISE_LEVEL_RMS:g}")
    if aligned is not None:
        found += f" As far towards the next token it reads {percent(aligned)}: what hurts is the direction."
    return Outcome(state, percent(value), found, "" if state == "good" else TRAIN_NOISED)


def is_sharp(evidence: Evidence) -> Outcome | None:
    """DABI at boundaries against DABI at data: text along the normal, images along the segment."""
    names = ("dabi", "dabi_data") if evidence.run.kind == "text" else ("dabi_segment", "dabi_data_segment")
    boundary, data = (evidence.value(name) for name in names)
    if boundary is None or not data:
        return None
    ratio = boundary / data
    state = SHARPNESS_RATIO.state(ratio)
    share = evidence.value(f"{names[0]}_fraction")
    found = f"The output moves {figure(boundary)} times as much across a boundary as in a random direction"
    found += f" (DABI), at data {figure(data)} times: a ratio of {figure(ratio)}."
    if share is not None:
        found += f" {percent(share)} of all sensitivity lies in that one direction."
    if state == "good":
        return Outcome(state, figure(ratio), found)
    advice = f"{SOFTER} {ways_out(evidence)}" if evidence.run.kind == "text" else ""
    return Outcome(state, figure(ratio), found, advice)


def lies_on_boundaries(evidence: Evidence) -> Outcome | None:
    """Distance to a flip of generated latents against that of data."""
    made, data = evidence.value("boundary_distance_generated_p50"), evidence.value("boundary_distance_p50")
    if made is None or not data:
        return None
    state = GENERATED_DISTANCE.state(made / data)
    found = f"Half of the generated latents' tokens are less than {figure(made)} rms from another token, "
    found += f"half of data's less than {figure(data)} rms."
    nearest = evidence.value("boundary_distance_p01")
    if nearest is not None and made < nearest:
        found += f" That is nearer than 99 % of data ({figure(nearest)} rms): the flow stops before tokens are chosen."
    return Outcome(state, figure(made / data), found, "" if state == "good" else ways_out(evidence))


def flips_late(evidence: Evidence) -> Outcome | None:
    """Late flips, of the diagnosis or of the sweep's deterministic samples."""
    value, steps = evidence.value("late_flip_rate"), None
    if value is not None:
        told = evidence.told_by("late_flip_rate")
        steps = None if told is None else told.num_predictions
    else:
        rows = {one.num_steps: one for one in evidence.flows(PARALLEL, 0.0) if one.late_flip_rate is not None}
        few = judged_steps(number for number in rows if number is not None)
        if not few:
            return None
        value, steps = rows[few[0]].late_flip_rate, few[0]
    if value is None:
        return None
    state = LATE_FLIPS.state(value)
    among = f" of {steps}" if steps else ""
    found = f"{percent(value)} of the tokens change in the last step{among}"
    length = evidence.run.block_size
    found += f", {figure(value * length)} in a text of {length}." if length else "."
    if state == "good":
        return Outcome(state, percent(value), found)
    found += _why_late(evidence)
    return Outcome(state, percent(value), found, escapes(evidence))


def _why_late(evidence: Evidence) -> str:
    """The cause, where the figures for it are there."""
    nearest, mass = evidence.value("boundary_distance_p01"), last_tube_mass(evidence)
    if nearest is None or mass is None:
        return ""
    told = f" 1 % of data's tokens lie within {figure(nearest)} rms of another, and {percent(mass[0])} within reach of "
    told += f"the last step (s = {figure(mass[1])})"
    if TUBE_MASS.state(mass[0]) == "good":
        return f"{told}: what flips more is the flow's own error, not only the noise of that step."
    return f"{told}: the readout is sharper than the map can follow."


def is_open_half_way(evidence: Evidence) -> Outcome | None:
    """Decidedness at the state nearest to half-way."""
    curve = evidence.curve("decidedness/decidedness")
    if curve is None or not curve.x:
        return None
    index = min(range(len(curve.x)), key=lambda place: abs(curve.x[place] - HALF_WAY))
    time, value = curve.x[index], curve.y[index]
    if abs(time - HALF_WAY) > NEAR:
        return None
    state = DECIDED_HALF_WAY.state(value)
    found = (
        f"Continued with fresh noise from t = {figure(time)}, two ends agree on a token {percent(value)} of the way "
    )
    found += "from chance to always."
    settles = evidence.value("decision_step")
    told = evidence.told_by("decision_step")
    if settles is not None and told is not None and told.num_predictions:
        found += (
            f" On a deterministic path a token settles at step {figure(settles)} of {told.num_predictions} on average."
        )
    advice = f"Spend the steps and the noise late, where tokens are decided. {ways_out(evidence)}"
    return Outcome(state, figure(value), found, "" if state == "good" else advice)


def has_mass_in_the_tube(evidence: Evidence) -> Outcome | None:
    """Theorem 3's prediction for the last step."""
    found = last_tube_mass(evidence)
    if found is None:
        return None
    mass, scale = found
    state = TUBE_MASS.state(mass)
    c, error = evidence.value("tube_c"), evidence.value("tube_fit_error")
    text = (
        f"At the noise scale of the last step, s = {figure(scale)}, {percent(mass)} of the tokens of data lie within "
    )
    text += "c s of a boundary" + (f" (c = {figure(c)}" if c is not None else "")
    text += f", fitted to flips with an error of {figure(error)})." if c is not None and error is not None else "."
    advice = f"More and shorter last steps make s smaller. {ways_out(evidence)}"
    return Outcome(state, percent(mass), text, "" if state == "good" else advice)


def last_tube_mass(evidence: Evidence) -> tuple[float, float] | None:
    """Tube mass and noise scale s where the last step starts, between measured times by straight lines.

    None where tube or trajectory was not measured, or the last step starts outside of the times that were.
    """
    states, masses = evidence.curve("decidedness/decidedness"), evidence.curve("tube/mass")
    told, of_tube = evidence.told_by("decidedness/decidedness"), evidence.told_by("tube/mass")
    if states is None or masses is None or not states.x or not masses.x or told is None or of_tube is None:
        return None
    if len(states.x) != told.num_predictions:  # training looks at some of the states only
        return None
    time, times = states.x[-1], of_tube.results["tube"].facts.get("times")
    if not isinstance(times, list) or len(times) != len(masses.x) or not min(times) <= time <= max(times):
        return None
    return between(Series("mass", tuple(times), masses.y), time), between(Series("s", tuple(times), masses.x), time)


def between(series: Series, x: float) -> float:
    """``series`` at ``x``, by straight lines between its points. Raises ``ValueError`` outside of them."""
    points = sorted(zip(series.x, series.y, strict=True))
    for (left, low), (right, high) in pairwise(points):
        if left <= x <= right:
            return low if right == left else low + (high - low) * (x - left) / (right - left)
    if points and points[0][0] == x:
        return points[0][1]
    raise ValueError(f"x is {x}: expected a place between the points of the series {series.label!r}")


READOUT_RULES = (
    Rule(
        "clean",
        "Does the readout read clean latents?",
        TOKEN_ACCURACY,
        reads_clean_latents,
        f"{DIAGNOSE} --only noise_robustness",
        "noise_robustness",
        reads=("token_accuracy", "noise_accuracy_at_0"),
        of_decoder=True,
    ),
    Rule(
        "noise",
        "Does it still read them under noise?",
        NOISE_ACCURACY,
        reads_under_noise,
        f"{DIAGNOSE} --only noise_robustness",
        "noise_robustness",
        reads=("noise_accuracy_at_0.4",),
        of_decoder=True,
    ),
    Rule(
        "sharp",
        "Is the readout sharp at its boundaries?",
        SHARPNESS_RATIO,
        is_sharp,
        f"{DIAGNOSE} --only dabi",
        "dabi",
        kinds=("text", "images"),
        reads=("dabi", "dabi_segment"),
        of_decoder=True,
    ),
    Rule(
        "generated",
        "Do generated latents lie on boundaries?",
        GENERATED_DISTANCE,
        lies_on_boundaries,
        f"{DIAGNOSE} --only boundary_distance,dabi_generated",
        "dabi_generated",
        reads=("boundary_distance_generated_p50",),
    ),
    Rule(
        "open",
        "Are tokens still open half-way?",
        DECIDED_HALF_WAY,
        is_open_half_way,
        f"{DIAGNOSE} --only decidedness,late_flips",
        "decidedness",
        reads=("decidedness/decidedness",),
    ),
    Rule(
        "tube",
        "How much of the data lies within reach of the last step?",
        TUBE_MASS,
        has_mass_in_the_tube,
        f"{DIAGNOSE} --only tube,decidedness",
        "tube",
        reads=("tube/mass",),
    ),
    Rule(
        "late",
        "Are tokens decided in the last step?",
        LATE_FLIPS,
        flips_late,
        f"{DIAGNOSE} --only late_flips",
        "late_flips",
        reads=("late_flip_rate",),
    ),
)
