"""Flow matching in x_1 or velocity, optionally with cross-entropy. B batch, L tokens, K positions, D dimension."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fewstep.denoisers import DenoiserOutput, FlowModel
from fewstep.objectives.base import Objective
from fewstep.readouts import token_nats
from fewstep.shapes import masked_mean, rand, randn
from fewstep.types import Latents, LossOutput, Readout, TokenBatch


@dataclass(kw_only=True, eq=False)
class FlowMatching(Objective):
    """Flow matching (arXiv:2210.02747, eq. 14): regression of the network's own target, x_1 or velocity.

    ``regression_weight`` multiplies the squared error, ``cross_entropy_weight`` the nats per token of the estimate:
    from the denoiser's own token logits if it has them, else through the readout (the terminal term of Diffusion-LM,
    arXiv:2205.14217). ``self_conditioning_probability`` is the share of steps in which a first estimate is fed back
    (arXiv:2208.04202).
    """

    feeds_back: ClassVar[bool] = True
    regression_weight: float = 1.0
    cross_entropy_weight: float = 0.0
    self_conditioning_probability: float = 0.0

    def __post_init__(self) -> None:
        regression, nats = self.regression_weight, self.cross_entropy_weight
        if min(regression, nats) < 0 or regression + nats <= 0:
            raise ValueError(
                f"regression_weight {regression}, cross_entropy_weight {nats}: expected both >= 0 and one of them > 0"
            )
        if not 0 <= self.self_conditioning_probability <= 1:
            raise ValueError(
                f"self_conditioning_probability is {self.self_conditioning_probability}: "
                "expected a share of the steps in [0, 1]"
            )

    def forward(
        self,
        model: FlowModel,
        latents: Latents,
        *,
        tokens: TokenBatch | None,
        readout: Readout | None,
        generator: torch.Generator,
        teacher: FlowModel | None = None,
        progress: float = 1.0,
    ) -> LossOutput:
        """See :class:`Objective`. The cross-entropy needs tokens and a readout: ``ValueError`` if they are missing."""
        self.check(model, teacher)
        x_1 = latents.z
        t = self.time_sampler.sample(len(x_1), generator, x_1.device)
        x_0 = randn(tuple(x_1.shape), x_1, generator)
        x_t = model.path.sample(x_1, x_0, t) * latents.mask[..., None]
        self_cond = self._first_estimate(model, x_t, t, latents.mask, generator)
        output = model.predict(x_t, t, mask=latents.mask, self_cond=self_cond)
        target = x_1 if model.prediction == "x1" else model.path.velocity(x_1, x_0, t)
        # With weight 0 it is only logged; its backward pass would cost as much as any other.
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.regression_weight > 0):
            squared_error = masked_mean((output.value - target).square(), latents.mask)
        per_example = self.regression_weight * squared_error
        terms = {"squared_error": squared_error.mean().detach()}
        if self.cross_entropy_weight > 0:
            if tokens is None or readout is None:
                raise ValueError("cross_entropy_weight needs tokens and a readout, which these latents do not have")
            nats = self._nats(model, output, x_t, t, tokens, readout)
            per_example = per_example + self.cross_entropy_weight * nats
            terms["cross_entropy_nats"] = nats.mean().detach()
        return LossOutput(per_example.mean(), per_example.detach(), terms)

    def _nats(
        self, model: FlowModel, output: DenoiserOutput, x_t: Tensor, t: Tensor, tokens: TokenBatch, readout: Readout
    ) -> Tensor:
        """Nats per token (B,) of ``tokens`` (B, L) under the output."""
        if output.token_logits is None:
            return readout.loss(model.x1_of(output, x_t, t), tokens.ids, tokens.mask)
        return masked_mean(token_nats(output.token_logits, tokens.ids), tokens.mask)

    @torch.no_grad()
    def _first_estimate(
        self, model: FlowModel, x_t: Tensor, t: Tensor, mask: Tensor, generator: torch.Generator
    ) -> Tensor | None:
        if self.self_conditioning_probability <= 0:
            return None
        # One draw for the batch, so that a step without feedback costs one pass. It is drawn and read on the
        # generator's device: reading it from an accelerator would sync the device at every step.
        if rand((1,), torch.empty(0), generator).item() >= self.self_conditioning_probability:
            return None
        return model.denoise(x_t, t, mask=mask)
