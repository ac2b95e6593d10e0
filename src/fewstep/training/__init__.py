"""Lightning modules, the data module and callbacks: the only room that knows Lightning and wandb."""

from fewstep.training.autoencoder import AutoencoderModule
from fewstep.training.commitment import CommitmentModule
from fewstep.training.data_module import TextDataModule
from fewstep.training.flow import FlowModule
from fewstep.training.language_model import LanguageModelModule
from fewstep.training.optimizer import OptimizerSettings

__all__ = [
    "AutoencoderModule",
    "CommitmentModule",
    "FlowModule",
    "LanguageModelModule",
    "OptimizerSettings",
    "TextDataModule",
]
