"""A flow with known positions: prompts, gaps and longer texts. B batch, K positions, D latent dimension."""

from typing import NamedTuple

import torch
from torch import Tensor

from fewstep.denoisers.flow_model import DenoiserOutput, FlowModel
from fewstep.schedules import upcast
from fewstep.shapes import expand_like


class Known(NamedTuple):
    """Clean latents ``z`` (B, K, D), known where ``mask`` (B, K) bool is true."""

    z: Tensor
    mask: Tensor


class ConditionalFlow(FlowModel):
    """A flow given known positions, which stand at t = 1 whatever the time of the others (arXiv:2407.01392).

    It is used like the flow itself, with states and masks of the other positions: states, estimates and targets say
    nothing at known ones. So every objective trains it and every sampler follows it.

    A network that :attr:`~fewstep.denoisers.FlowModel.reads_known` sees the clean latents there, marked as such. One
    that was trained without needs ``noise`` (B, K, D) and sees them noised to the others' time (arXiv:2201.09865).
    """

    def __init__(self, flow: FlowModel, known: Known, noise: Tensor | None = None) -> None:
        super().__init__(flow.network, flow.path, flow.prediction)
        self.known = known
        self.noise = noise

    def rows(self, index: slice | Tensor) -> "ConditionalFlow":
        noise = None if self.noise is None else self.noise[index]
        return ConditionalFlow(self, Known(self.known.z[index], self.known.mask[index]), noise)

    def predict(
        self,
        x_t: Tensor,
        t: Tensor,
        s: Tensor | None = None,
        *,
        mask: Tensor | None = None,
        self_cond: Tensor | None = None,
    ) -> DenoiserOutput:
        """See :class:`FlowModel`; ``mask`` (B, K) is true at the positions that are not known and no padding."""
        z, held = self.known
        seen = None if mask is None else mask | held
        if self.reads_known:
            x = torch.where(expand_like(held, x_t), z.to(x_t.dtype), x_t)
            return self.network(x, t, s, mask=seen, self_cond=self_cond, known=held)
        assert self.noise is not None, "a network that was trained without known positions needs noise"
        z_t = self.path.sample(z, self.noise, t)
        return self.network(torch.where(expand_like(held, x_t), z_t, upcast(x_t)), t, s, mask=seen, self_cond=self_cond)


class Guided:
    """Classifier-free guidance on what is known (arXiv:2207.12598, eq. 6): x1_hat = free + ``scale`` (given - free).

    The free estimate comes from the same network, which sees the other positions alone; a flow has learned it if known
    parts were dropped in its training. Scale 1 is the flow itself.
    """

    passes = 2  # of the network for one estimate

    def __init__(self, flow: ConditionalFlow, scale: float) -> None:
        self.flow = flow
        self.free = FlowModel(flow.network, flow.path, flow.prediction)
        self.scale = scale
        self.two_times = flow.two_times

    def denoise(
        self,
        x_t: Tensor,
        t: Tensor,
        *,
        s: Tensor | None = None,
        mask: Tensor | None = None,
        self_cond: Tensor | None = None,
    ) -> Tensor:
        """The guided estimate x1_hat (B, K, D); ``mask`` (B, K) of the positions that are not known is needed."""
        free = self.free.denoise(x_t, t, s=s, mask=mask, self_cond=self_cond)
        given = self.flow.denoise(x_t, t, s=s, mask=mask, self_cond=self_cond)
        return free + self.scale * (given - free)
