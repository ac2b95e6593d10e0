"""Where a flow decides its tokens, how stiff it is, and how a commitment head commits, after every validation."""

from typing import ClassVar

from fewstep.evaluation.measurements import (
    measure_cci,
    measure_commitment,
    measure_dabi_commit,
    measure_dabi_generated,
    measure_late_flips,
    measure_stiffness,
    measure_tube,
)
from fewstep.training.callbacks.diagnosed import Material, share
from fewstep.training.callbacks.diagnostics import DiagnosticsCallback, Results
from fewstep.training.callbacks.efforts import BRIEF, NUM_CONTINUATIONS, NUM_ITERATIONS, STIFFNESS_TIMES, TUBE_TIMES
from fewstep.training.flow import FlowModule
from fewstep.training.head import HeadModule
from fewstep.training.stage import Stage


class FlowDiagnostics(DiagnosticsCallback):
    """DABI at generated latents, tube, stiffness, late flips and commitment of a flow; see the base.

    Stiffness and commitment look at a quarter of the examples, the others at half of them, DABI at the first position
    of each and without finite radii: a whole diagnosis is dear, and ``fewstep diagnose`` makes it.
    """

    stage_class: ClassVar[type[Stage]] = FlowModule
    parts: ClassVar[tuple[str, ...]] = ("autoencoder", "readout", "denoiser")

    def measure(self, found: Material) -> Results:
        """All of it."""
        if found.subject is None:
            return ()
        half, quarter = share(found.subject, 2), share(found.subject, 4)
        return (
            *measure_dabi_generated(half.first(len(half.z), 1), effort=BRIEF),
            *measure_tube(half, times=TUBE_TIMES),
            *measure_stiffness(quarter, times=STIFFNESS_TIMES, num_iterations=NUM_ITERATIONS),
            *measure_late_flips(half),
            *measure_commitment(quarter, num_continuations=NUM_CONTINUATIONS, every=3),
        )


class HeadDiagnostics(DiagnosticsCallback):
    """CCI and DABI of a commitment head; see the base.

    CCI is that at generated latents, and where the model has no denoiser at data with noise of the head's trust level;
    drawing token after token is dear, so it looks at an eighth of the examples, and DABI at a quarter of them.
    """

    stage_class: ClassVar[type[Stage]] = HeadModule

    def measure(self, found: Material) -> Results:
        """All of it."""
        if found.subject is None:
            return ()
        generates, trust_level = found.bundle.denoiser is not None, found.bundle.identity.trust_level
        quarter = share(found.subject, 4)
        return (
            *measure_cci(share(found.subject, 8), levels=() if generates else (trust_level,)),
            *measure_dabi_commit(quarter.first(len(quarter.z), 1), effort=BRIEF),
        )
