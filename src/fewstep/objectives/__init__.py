"""What is minimised: reconstruction of text and of images, flow matching, commitment."""

from fewstep.objectives.commitment import CommitmentTraining
from fewstep.objectives.flow_matching import FlowMatching
from fewstep.objectives.image_reconstruction import ImageReconstruction
from fewstep.objectives.reconstruction import Reconstruction

__all__ = ["CommitmentTraining", "FlowMatching", "ImageReconstruction", "Reconstruction"]
