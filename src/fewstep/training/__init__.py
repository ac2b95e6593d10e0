"""Lightning modules, data modules and callbacks: the only room that knows Lightning and wandb."""

from fewstep.training.data_modules import TextDataModule
from fewstep.training.flow import DistributionMatchingModule, FlowModule
from fewstep.training.module import OptimizerSettings
from fewstep.training.stages import AutoencoderModule, HeadModule, LanguageModelModule

__all__ = [
    "AutoencoderModule",
    "DistributionMatchingModule",
    "FlowModule",
    "HeadModule",
    "LanguageModelModule",
    "OptimizerSettings",
    "TextDataModule",
]
