"""Networks that estimate clean latents, and the wrapper that gives them one meaning."""

from fewstep.denoisers.categorical import CategoricalDenoiser
from fewstep.denoisers.flow_model import FlowModel, PredictionType
from fewstep.denoisers.output import (
    ENDPOINT,
    ESTIMATES,
    FLOW_MAP,
    POSTERIOR_MEAN,
    DenoiserOutput,
    EstimateKind,
    ReadsCodebook,
)
from fewstep.denoisers.regression import RegressionDenoiser

__all__ = [
    "ENDPOINT",
    "ESTIMATES",
    "FLOW_MAP",
    "POSTERIOR_MEAN",
    "CategoricalDenoiser",
    "DenoiserOutput",
    "EstimateKind",
    "FlowModel",
    "PredictionType",
    "ReadsCodebook",
    "RegressionDenoiser",
]
