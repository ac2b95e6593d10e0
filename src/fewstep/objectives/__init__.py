"""What is minimised: reconstruction of text and of images, flow matching, few-step objectives, commitment."""

from fewstep.objectives.consistency import ConsistencyDistillation, ConsistencyTraining
from fewstep.objectives.derivative import Derivative, FiniteDifference, ForwardMode
from fewstep.objectives.easy_consistency import EasyConsistency
from fewstep.objectives.eulerian_distillation import EulerianSelfDistillation
from fewstep.objectives.few_step import FewStepObjective
from fewstep.objectives.flow_matching import FlowMatching
from fewstep.objectives.flow_objective import FlowObjective
from fewstep.objectives.head import HeadTraining
from fewstep.objectives.image_reconstruction import ImageReconstruction
from fewstep.objectives.lagrangian import LagrangianSelfDistillation
from fewstep.objectives.mean_flow import MeanFlow
from fewstep.objectives.progressive import ProgressiveDistillation
from fewstep.objectives.reconstruction import Reconstruction
from fewstep.objectives.reflow import Reflow
from fewstep.objectives.semigroup import SemigroupSelfDistillation
from fewstep.objectives.shortcut import ShortcutModel
from fewstep.objectives.time_pairs import TimePairs
from fewstep.objectives.weights import AdaptiveWeight

__all__ = [
    "AdaptiveWeight",
    "ConsistencyDistillation",
    "ConsistencyTraining",
    "Derivative",
    "EasyConsistency",
    "EulerianSelfDistillation",
    "FewStepObjective",
    "FiniteDifference",
    "FlowMatching",
    "FlowObjective",
    "ForwardMode",
    "HeadTraining",
    "ImageReconstruction",
    "LagrangianSelfDistillation",
    "MeanFlow",
    "ProgressiveDistillation",
    "Reconstruction",
    "Reflow",
    "SemigroupSelfDistillation",
    "ShortcutModel",
    "TimePairs",
]
