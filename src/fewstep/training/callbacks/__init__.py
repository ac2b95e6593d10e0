"""What happens around training: averaging, resume points, samples, diagnostics, skipped steps, compilation."""

from fewstep.training.callbacks.interruptions import ResumePoint, SkipNonFinite
from fewstep.training.callbacks.validations import Diagnostics, SampleTable
from fewstep.training.callbacks.weights import CompiledBlocks, ExportModel, RecomputedBlocks, WeightAverage

__all__ = [
    "CompiledBlocks",
    "Diagnostics",
    "ExportModel",
    "RecomputedBlocks",
    "ResumePoint",
    "SampleTable",
    "SkipNonFinite",
    "WeightAverage",
]
