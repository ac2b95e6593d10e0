"""What happens around training: averaging, resume points, samples, diagnostics, skipped steps, compilation."""

from fewstep.training.callbacks.averaging import ExportModel, WeightAverage
from fewstep.training.callbacks.blocks import CompiledBlocks, RecomputedBlocks
from fewstep.training.callbacks.diagnostics import Diagnostics
from fewstep.training.callbacks.monitor import Monitor, StepBar
from fewstep.training.callbacks.nonfinite import SkipNonFinite
from fewstep.training.callbacks.resume_point import ResumePoint
from fewstep.training.callbacks.samples import SampleTable

__all__ = [
    "CompiledBlocks",
    "Diagnostics",
    "ExportModel",
    "Monitor",
    "RecomputedBlocks",
    "ResumePoint",
    "SampleTable",
    "SkipNonFinite",
    "StepBar",
    "WeightAverage",
]
