"""Mean flow: the average velocity of a jump, learnt from data alone. B batch, K positions, D latent dimension."""

from torch import Tensor

from fewstep.denoisers import FlowModel
from fewstep.objectives.eulerian import EulerianObjective
from fewstep.objectives.flow_map import Jumps


class MeanFlow(EulerianObjective):
    """arXiv:2505.13447, eq. 9 to 11, on any path: the estimate is pulled to where the Eulerian equation would hold,

        F_target = F + (sigma_s / sigma_t) (x_1 - F) + ((alpha_s sigma_t - alpha_t sigma_s) / Delta_t) dF/dt,

    with the conditional velocity alpha' x_1 + sigma' x_0 as direction of the derivative
    (:mod:`fewstep.objectives.eulerian`). At s = t both factors, 1 and 0, leave x_1: this is flow matching, and done
    without a derivative. Half of the pairs are such by default (``instant_share``), a tenth ends at s = 1
    (``end_share``). ``derivative`` is forward mode by default. The network must have two times: ``ValueError``
    otherwise.
    """

    @property
    def jump_passes(self) -> float:
        """Three of the pass with its gradient, and the derivative's."""
        return 3 + self.derivative.passes

    def direction(self, model: FlowModel, jumps: Jumps) -> tuple[Tensor, Tensor]:
        """The conditional velocity of the pair of data and noise, whose clean estimate is x_1."""
        return model.path.velocity(jumps.draw.x_1, jumps.draw.x_0, jumps.t), jumps.draw.x_1
