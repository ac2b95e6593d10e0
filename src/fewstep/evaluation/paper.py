"""The protocol of figures that people compare between decoders, apart because diagnosis, command and report read it."""

from typing import Literal

from fewstep.diagnostics.first_failure import first_failure
from fewstep.diagnostics.result import Result
from fewstep.evaluation.measurement import Effort, Measurement, Threshold
from fewstep.evaluation.subject import Subject

ProtocolName = Literal["paper"]
"""A protocol fixes measurements, examples, positions and effort; None: as the options say."""
PAPER_MEASUREMENTS = ("token_accuracy", "reconstruction", "dabi", "first_failure", "cci")
PAPER_EXAMPLES = 512
"""Held-out examples, or all where the data has fewer; one position in each."""


def measure_first_failure(subject: Subject, *, num_random: int = 4) -> Result:
    """How far a latent moves before its token changes, across the nearest boundary and in random directions."""
    noise = subject.noise("first_failure")
    return first_failure(
        subject.decode, subject.z, subject.positions, subject.margins, num_random=num_random, generator=noise
    )


FIRST_FAILURE = Measurement(
    measure_first_failure,
    kind="text",
    default=Effort(share=4, positions=1),
    thresholds={
        "first_failure_ratio": Threshold(
            "first-failure radius in a random direction over that in the boundary direction",
            3.0,
            10.0,
            False,
            "A ball-shaped cell has 1. A single flat boundary in n numbers has about sqrt(n) / 0.67, 24 at n = 256: "
            "then isotropic noise says little about errors that point at the boundary. Three and an order of "
            "magnitude, as for DABI.",
        ),
    },
)
