"""What a decoder and a flow are like, measured on callables and tensors: sharpness, commitment, flips, stiffness."""

from fewstep.diagnostics.boundary import (
    BoundaryPoints,
    data_points,
    data_segments,
    draw_positions,
    normal_boundary,
    segment_boundary,
    segment_midpoint,
    worst_direction,
)
from fewstep.diagnostics.cci import Cci, CciCurve, TokenConditionals, cci, cci_curve
from fewstep.diagnostics.curves import estimate_series
from fewstep.diagnostics.dabi import Dabi, DabiAtRadius, FisherTrace, dabi, fisher_trace
from fewstep.diagnostics.derivatives import Decode, directional, pullback, value_and_gradient
from fewstep.diagnostics.fidelity import Fidelity, reconstruction_error, token_accuracy
from fewstep.diagnostics.flips import DabiFlip, FlipRatio, dabi_flip
from fewstep.diagnostics.geometry import rms
from fewstep.diagnostics.margins import BoundaryScale, Margins, boundary_distance, boundary_width, margins
from fewstep.diagnostics.parts import DecodeInParts, read_tokens
from fewstep.diagnostics.response import CategoricalResponse, ContinuousResponse, Response
from fewstep.diagnostics.results import Diagnostic, DiagnosticRow, Estimate, Picture, Series
from fewstep.diagnostics.robustness import NoiseRobustness, noise_robustness
from fewstep.diagnostics.stiffness import Stiffness, stiffness
from fewstep.diagnostics.trajectories import (
    Commitment,
    CommitStep,
    LateFlips,
    commit_step,
    commitment,
    late_flip_rate,
    settling_steps,
    unigram_collision,
)
from fewstep.diagnostics.tube import Tube, tube

__all__ = [
    "BoundaryPoints",
    "BoundaryScale",
    "CategoricalResponse",
    "Cci",
    "CciCurve",
    "CommitStep",
    "Commitment",
    "ContinuousResponse",
    "Dabi",
    "DabiAtRadius",
    "DabiFlip",
    "Decode",
    "DecodeInParts",
    "Diagnostic",
    "DiagnosticRow",
    "Estimate",
    "Fidelity",
    "FisherTrace",
    "FlipRatio",
    "LateFlips",
    "Margins",
    "NoiseRobustness",
    "Picture",
    "Response",
    "Series",
    "Stiffness",
    "TokenConditionals",
    "Tube",
    "boundary_distance",
    "boundary_width",
    "cci",
    "cci_curve",
    "commit_step",
    "commitment",
    "dabi",
    "dabi_flip",
    "data_points",
    "data_segments",
    "directional",
    "draw_positions",
    "estimate_series",
    "fisher_trace",
    "late_flip_rate",
    "margins",
    "noise_robustness",
    "normal_boundary",
    "pullback",
    "read_tokens",
    "reconstruction_error",
    "rms",
    "segment_boundary",
    "segment_midpoint",
    "settling_steps",
    "stiffness",
    "token_accuracy",
    "tube",
    "unigram_collision",
    "value_and_gradient",
    "worst_direction",
]
