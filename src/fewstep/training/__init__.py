"""Lightning modules, data modules and callbacks: the only room that knows Lightning and wandb."""

from fewstep.training.autoencoder import AutoencoderModule
from fewstep.training.data_module import TextDataModule
from fewstep.training.flow import FlowModule
from fewstep.training.head import HeadModule
from fewstep.training.image_autoencoder import ImageAutoencoderModule
from fewstep.training.image_data import ImageDataModule
from fewstep.training.image_flow import ImageFlowModule
from fewstep.training.language_model import LanguageModelModule
from fewstep.training.optimizer import OptimizerSettings

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
