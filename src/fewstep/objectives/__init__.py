"""What is minimised: reconstruction of text and of images, flow matching, few-step objectives, commitment."""

from fewstep.objectives.commitment import CommitmentTraining
from fewstep.objectives.derivative import Derivative, FiniteDifference, ForwardMode
from fewstep.objectives.few_step import FewStepObjective
from fewstep.objectives.flow_matching import FlowMatching
from fewstep.objectives.flow_objective import FlowObjective
from fewstep.objectives.image_reconstruction import ImageReconstruction
from fewstep.objectives.mean_flow import MeanFlow
from fewstep.objectives.reconstruction import Reconstruction
from fewstep.objectives.time_pairs import TimePairs
from fewstep.objectives.weights import AdaptiveWeight

__all__ = [
    "AdaptiveWeight",
    "CommitmentTraining",
    "Derivative",
    "FewStepObjective",
    "FiniteDifference",
    "FlowMatching",
    "FlowObjective",
    "ForwardMode",
    "ImageReconstruction",
    "MeanFlow",
    "Reconstruction",
    "TimePairs",
]
