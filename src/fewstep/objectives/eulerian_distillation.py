"""Eulerian self-distillation: mean flow along the model's own velocity. B batch, K positions, D latent dimension."""

from typing import ClassVar

import torch
from torch import Tensor

from fewstep.denoisers import FlowModel
from fewstep.objectives.eulerian import EulerianObjective
from fewstep.objectives.flow_map import Jumps


class EulerianSelfDistillation(EulerianObjective):
    """arXiv:2505.18825, Eulerian self-distillation, on any path: d/dt X(t, s)(x_t) = 0 along the model's own velocity,
    that of F_v = F(x_t, t, t), the model's estimate of the flow, which the pairs with s = t learn
    (:mod:`fewstep.objectives.eulerian`).

    Where mean flow takes the velocity of one pair of data and noise, this takes their mean as far as it is known: a
    quieter target that is biased until the flow is learnt. The whole target is without gradient, as that of mean flow.
    The readout's tokens at the target stand in for the data's, which it does not use. Other settings as
    :class:`MeanFlow`; ``ValueError`` for a network of one time.
    """

    from_data: ClassVar[bool] = False

    @property
    def jump_passes(self) -> float:
        """Three of the pass with its gradient, the derivative's, and one for the velocity."""
        return 4 + self.derivative.passes

    @torch.no_grad()
    def direction(self, model: FlowModel, jumps: Jumps) -> tuple[Tensor, Tensor]:
        """The model's own velocity at (x_t, t), zero at padding, and its estimate there."""
        now = model.denoise(jumps.x_t, jumps.t, s=jumps.t, mask=jumps.draw.mask)
        return model.velocity_of(jumps.x_t, now, jumps.t) * jumps.draw.mask[..., None], now
