"""Networks that estimate clean latents, and the wrapper that gives them one meaning."""

from fewstep.denoisers.conditional import ConditionalFlow, Guided, Known
from fewstep.denoisers.flow_model import (
    ENDPOINT,
    ESTIMATES,
    FLOW_MAP,
    POSTERIOR_MEAN,
    DenoiserOutput,
    EstimateKind,
    FlowModel,
    PredictionType,
    ReadsCodebook,
)
from fewstep.denoisers.networks import CategoricalDenoiser, RegressionDenoiser

__all__ = [
    "ENDPOINT",
    "ESTIMATES",
    "FLOW_MAP",
    "POSTERIOR_MEAN",
    "CategoricalDenoiser",
    "ConditionalFlow",
    "DenoiserOutput",
    "EstimateKind",
    "FlowModel",
    "Guided",
    "Known",
    "PredictionType",
    "ReadsCodebook",
    "RegressionDenoiser",
]
