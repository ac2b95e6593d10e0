"""What happens around training: resume point, steps left out, progress, throughput, samples, diagnostics, export."""

from fewstep.training.callbacks.autoencoder_diagnostics import AutoencoderDiagnostics
from fewstep.training.callbacks.diagnostics import DiagnosticsCallback
from fewstep.training.callbacks.export import ExportModel
from fewstep.training.callbacks.flow_diagnostics import CommitmentDiagnostics, FlowDiagnostics
from fewstep.training.callbacks.progress import StepProgress
from fewstep.training.callbacks.resume_point import ResumePoint
from fewstep.training.callbacks.samples import SampleTable
from fewstep.training.callbacks.skip_nonfinite import SkipNonFinite
from fewstep.training.callbacks.summary import StageSummary
from fewstep.training.callbacks.throughput import Throughput

__all__ = [
    "AutoencoderDiagnostics",
    "CommitmentDiagnostics",
    "DiagnosticsCallback",
    "ExportModel",
    "FlowDiagnostics",
    "ResumePoint",
    "SampleTable",
    "SkipNonFinite",
    "StageSummary",
    "StepProgress",
    "Throughput",
]
