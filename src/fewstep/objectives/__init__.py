"""Objectives: flow matching, flow maps, consistency, distillation, distribution matching; those of the other stages."""

from fewstep.objectives.base import Batch, FlowMatching, Objective, Regression, match_flow
from fewstep.objectives.consistency import ConsistencyDistillation, ConsistencyTraining
from fewstep.objectives.distillation import ProgressiveDistillation, Reflow
from fewstep.objectives.distribution_matching import DistributionMatching, Generated
from fewstep.objectives.flow_maps import LagrangianSelfDistillation, MeanFlow, SemigroupSelfDistillation, ShortcutModel
from fewstep.objectives.known import KnownPositions
from fewstep.objectives.stages import HeadTraining, Reconstruction

OBJECTIVES: dict[str, type[Objective]] = {
    "flow_matching": FlowMatching,
    "consistency_training": ConsistencyTraining,
    "consistency_distillation": ConsistencyDistillation,
    "mean_flow": MeanFlow,
    "lagrangian": LagrangianSelfDistillation,
    "semigroup": SemigroupSelfDistillation,
    "shortcut": ShortcutModel,
    "progressive": ProgressiveDistillation,
    "reflow": Reflow,
    "distribution_matching": DistributionMatching,
}
"""The objectives of a denoiser by short name; each has a settings file of that name in ``configs/objectives``."""

__all__ = [
    "OBJECTIVES",
    "Batch",
    "ConsistencyDistillation",
    "ConsistencyTraining",
    "DistributionMatching",
    "FlowMatching",
    "Generated",
    "HeadTraining",
    "KnownPositions",
    "LagrangianSelfDistillation",
    "MeanFlow",
    "Objective",
    "ProgressiveDistillation",
    "Reconstruction",
    "Reflow",
    "Regression",
    "SemigroupSelfDistillation",
    "ShortcutModel",
    "match_flow",
]
