"""What happens around training: resume point, progress, throughput, samples, robustness, export."""

from fewstep.training.callbacks.export import ExportModel
from fewstep.training.callbacks.progress import StepProgress
from fewstep.training.callbacks.resume_point import ResumePoint
from fewstep.training.callbacks.robustness import RobustnessTable
from fewstep.training.callbacks.samples import SampleTable
from fewstep.training.callbacks.summary import StageSummary
from fewstep.training.callbacks.throughput import Throughput

__all__ = [
    "ExportModel",
    "ResumePoint",
    "RobustnessTable",
    "SampleTable",
    "StageSummary",
    "StepProgress",
    "Throughput",
]
