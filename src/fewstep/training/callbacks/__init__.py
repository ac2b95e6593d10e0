"""What happens around training: clean interruption, throughput, samples, export."""

from fewstep.training.callbacks.export import ExportModel
from fewstep.training.callbacks.interrupt import InterruptBetweenSteps

from fewstep.training.callbacks.samples import SampleTable
from fewstep.training.callbacks.throughput import Throughput

__all__ = ["ExportModel", "InterruptBetweenSteps", "SampleTable", "Throughput"]
