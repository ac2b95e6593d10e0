"""The thresholds of the verdict, each with its reason. Those of a measurement are declared with it.

They are this project's own. "Measured" refers to the models of this repository's README and docs: a small text model
(quickstart), one that trained for an hour, and two image autoencoders. They sort what to look at first.
"""

from typing import Literal

from fewstep.evaluation.figures import ENTROPY_BAND_NATS
from fewstep.evaluation.measurement import Threshold
from fewstep.evaluation.measurements import MEASUREMENTS, NOISE_LEVEL_RMS
from fewstep.lab.report.wording import figure, percent

State = Literal["good", "look", "bad", "not measured"]
STATES: tuple[State, ...] = ("bad", "look", "good", "not measured")
"""In the order in which they matter."""


def threshold_value(threshold: Threshold, value: float) -> str:
    """``value`` as the figure is written."""
    return percent(value) if threshold.shares else figure(value)


def threshold_text(threshold: Threshold) -> str:
    """The rule in words."""
    good, bad = (threshold_value(threshold, value) for value in (threshold.good, threshold.bad))
    if threshold.higher:
        return f"{threshold.reads}: good from {good}, bad below {bad}"
    return f"{threshold.reads}: good up to {good}, bad above {bad}"


_NOISE = MEASUREMENTS["noise_robustness"].thresholds
TOKEN_ACCURACY, NOISE_ACCURACY = _NOISE["noise_accuracy_at_0"], _NOISE[f"noise_accuracy_at_{NOISE_LEVEL_RMS:g}"]
(SHARPNESS_RATIO,) = MEASUREMENTS["dabi"].thresholds.values()
(LATE_FLIPS,) = MEASUREMENTS["late_flips"].thresholds.values()
(DECIDED_HALF_WAY,) = MEASUREMENTS["decidedness"].thresholds.values()
(GENERATED_DISTANCE,) = MEASUREMENTS["dabi_generated"].thresholds.values()
(TUBE_MASS,) = MEASUREMENTS["tube"].thresholds.values()
(STEPPED_STIFFNESS,) = MEASUREMENTS["stiffness"].thresholds.values()
(LISTENING_NATS,) = MEASUREMENTS["listening"].thresholds.values()
(COMMITMENT_INDEX,) = MEASUREMENTS["cci"].thresholds.values()
SATURATION = Threshold(
    "perplexity of the most deterministic steps over real text's",
    2.0,
    5.0,
    False,
    "A language model of the same size and data writes at 1.2 to 1.4 times real text's perplexity, its words shuffled "
    "have 5 to 8 times (measured): beyond that, text is no better than its own words in random order.",
)
STILL_FALLING = 0.1
"""A perplexity that the last doubling of steps lowers by at least this share, beyond its interval, is still falling."""
GAIN = Threshold(
    "share of perplexity that it takes away",
    0.2,
    0.0,
    True,
    "A gain counts where the two 95 % intervals do not overlap, and only within the entropy band: text can get "
    "likelier by being colder. A fifth is about the width of an interval of 128 texts. Measured at K = 4: "
    "re-injection -11 % and 41 % of two models, the head 89 and 91 %.",
    shares=True,
)
ENTROPY_GAP = Threshold(
    "entropy of the likeliest samples below real text's, nats",
    ENTROPY_BAND_NATS,
    2 * ENTROPY_BAND_NATS,
    False,
    f"{ENTROPY_BAND_NATS:g} nats is the band within which this project compares perplexities; twice as much is close "
    "to ln 2 = 0.69, what a text loses whose second half repeats its first.",
)
COPIES = Threshold(
    "8-grams that stand in the train text, samples' share over held-out text's",
    1.0,
    2.0,
    False,
    "Held-out text shares stock phrases with the train text (6.5 % of 8-grams, measured): no more than that is not "
    "copying, twice as much is.",
)
