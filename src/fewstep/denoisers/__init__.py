"""Networks that estimate clean latents, and the wrapper that gives them one meaning."""

from fewstep.denoisers.categorical import CategoricalDenoiser
from fewstep.denoisers.flow_model import EstimateKind, FlowModel, PredictionType
from fewstep.denoisers.output import DenoiserOutput
from fewstep.denoisers.regression import RegressionDenoiser

__all__ = ["CategoricalDenoiser", "DenoiserOutput", "EstimateKind", "FlowModel", "PredictionType", "RegressionDenoiser"]
