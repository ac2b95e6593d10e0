"""What is minimised: reconstruction, flow matching, commitment."""

from fewstep.objectives.commitment import CommitmentTraining
from fewstep.objectives.flow_matching import FlowMatching
from fewstep.objectives.reconstruction import Reconstruction

__all__ = ["CommitmentTraining", "FlowMatching", "Reconstruction"]
