"""What happens around training: averaging, resume points, samples, diagnostics, skipped steps, compilation."""

from fewstep.training.callbacks.diagnostics import Diagnostics
from fewstep.training.callbacks.interruptions import ResumePoint, SkipNonFinite
from fewstep.training.callbacks.progress import Monitor, SampleTable, StepBar
from fewstep.training.callbacks.weights import CompiledBlocks, ExportModel, RecomputedBlocks, WeightAverage

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
