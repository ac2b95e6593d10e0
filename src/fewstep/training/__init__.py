"""Lightning modules, data modules and callbacks: the only room that knows Lightning and wandb."""

from fewstep.training.autoencoders import AutoencoderModule, ImageAutoencoderModule
from fewstep.training.data_modules import ImageDataModule, TextDataModule
from fewstep.training.flow import FlowModule, ImageFlowModule
from fewstep.training.head import HeadModule, LanguageModelModule
from fewstep.training.module import OptimizerSettings

__all__ = [
    "AutoencoderModule",
    "FlowModule",
    "HeadModule",
    "ImageAutoencoderModule",
    "ImageDataModule",
    "ImageFlowModule",
    "LanguageModelModule",
    "OptimizerSettings",
    "TextDataModule",
]
