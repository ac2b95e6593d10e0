"""What happens around training: resume point, steps left out, progress, samples, diagnostics, export, compilation."""

from fewstep.training.callbacks.autoencoder_diagnostics import AutoencoderDiagnostics
from fewstep.training.callbacks.averaging import ExportModel, WeightAverage
from fewstep.training.callbacks.compiled_blocks import CompiledBlocks
from fewstep.training.callbacks.diagnostics import DiagnosticsCallback
from fewstep.training.callbacks.flow_diagnostics import FlowDiagnostics, HeadDiagnostics
from fewstep.training.callbacks.nonfinite import SkipNonFinite
from fewstep.training.callbacks.progress import StepProgress
from fewstep.training.callbacks.recomputed_blocks import RecomputedBlocks
from fewstep.training.callbacks.resume_point import ResumePoint
from fewstep.training.callbacks.samples import SampleTable
from fewstep.training.callbacks.summary import StageSummary
from fewstep.training.callbacks.throughput import Throughput

__all__ = [
    "AutoencoderDiagnostics",
    "CompiledBlocks",
    "DiagnosticsCallback",
    "ExportModel",
    "FlowDiagnostics",
    "HeadDiagnostics",
    "RecomputedBlocks",
    "ResumePoint",
    "SampleTable",
    "SkipNonFinite",
    "StageSummary",
    "StepProgress",
    "Throughput",
    "WeightAverage",
]
