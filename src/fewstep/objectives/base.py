"""The frame of every objective, and flow matching, the plainest. B batch, L tokens, K positions, D latent dimension."""

from abc import ABC
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from fewstep.denoisers import ESTIMATES, POSTERIOR_MEAN, EstimateKind, FlowModel
from fewstep.readouts import token_nats
from fewstep.schedules import TimeSampler
from fewstep.shapes import masked_mean, rand, randn
from fewstep.types import Latents, LossOutput, Readout, TokenBatch

MIN_SIGMA = 0.05
"""A velocity's error grows as 1 / sigma times that of x_1; nearer to the data it grows no further."""


class Batch(NamedTuple):
    """Data ``x_1`` and noise ``x_0`` (B, K, D), both 0 at padding, ``mask`` (B, K), and what draws everything else."""

    x_1: Tensor
    x_0: Tensor
    mask: Tensor
    generator: torch.Generator
    progress: float = 1.0

    def rows(self, rows: slice) -> "Batch":
        """Some of the examples."""
        return Batch(self.x_1[rows], self.x_0[rows], self.mask[rows], self.generator, self.progress)


class Regression(NamedTuple):
    """``prediction`` and ``target`` (B', K, D) as the network predicts, the latter without gradient, and ``mask``."""

    prediction: Tensor
    target: Tensor
    mask: Tensor


@dataclass(eq=False)
class Objective(ABC):
    """How a denoiser is trained on latents. A subclass implements :meth:`regressions`, or replaces :meth:`forward`.

    ``time_sampler`` draws the training times; the sampler's default grid follows it. ``estimate`` says what the trained
    model's clean estimate is, and so whether its network has two times. ``needs_teacher``: it learns from a trained
    flow. ``feeds_back``: it trains networks with self-conditioning.
    """

    estimate: ClassVar[EstimateKind] = POSTERIOR_MEAN
    needs_teacher: ClassVar[bool] = False
    feeds_back: ClassVar[bool] = False
    time_sampler: TimeSampler

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if ESTIMATES.setdefault(cls.estimate.name, cls.estimate) != cls.estimate:
            raise TypeError(f"{cls.__name__}: another estimate is already called {cls.estimate.name!r}")

    @property
    def saved_name(self) -> str:
        """What a saved model calls it: its class, of another package with its path."""
        own = type(self)
        return own.__name__ if own.__module__.startswith("fewstep.") else f"{own.__module__}.{own.__qualname__}"

    @property
    def trained_nfe(self) -> int | None:
        """The number of sampling steps that the model is trained for; None: any."""
        return None

    @property
    def teacher_nfe(self) -> int | None:
        """The number of steps in which a teacher would sample here; only one trained for it, or for any, will do."""
        return None

    @property
    def passes_per_step(self) -> float:
        """Forward passes of a denoiser per example and training step, those of a teacher included.

        A backward pass counts as two, a forward-mode derivative as one in addition to the pass that it comes with.
        """
        return 3.0

    def regressions(self, model: FlowModel, batch: Batch, teacher: FlowModel | None) -> Iterator[Regression]:
        """What is regressed on this batch."""
        raise NotImplementedError(f"{type(self).__name__} implements neither regressions nor forward")

    def weigh(self, squared_error: Tensor) -> Tensor:
        """The loss (B,) of squared errors (B,)."""
        return squared_error

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
        """Loss over a batch of ``latents`` (B, K, D), squared errors averaged over real positions.

        ``tokens`` (B, L) and ``readout`` are None for latents that do not stand for text. ``progress`` in [0, 1] is the
        share of the training that is done.
        """
        real = latents.mask[..., None]
        x_0 = randn(tuple(latents.z.shape), latents.z, generator) * real
        batch = Batch(latents.z * real, x_0, latents.mask, generator, progress)
        errors = torch.cat(
            [
                masked_mean((part.prediction - part.target).square(), part.mask)
                for part in self.regressions(model, batch, teacher)
            ]
        )
        per_example = self.weigh(errors)
        return LossOutput(per_example.mean(), per_example.detach(), {"squared_error": errors.mean().detach()})


def match_flow(model: FlowModel, x_1: Tensor, x_0: Tensor, t: Tensor, mask: Tensor) -> Regression:
    """Flow matching (arXiv:2210.02747, eq. 14) of pairs (B, K, D) at times ``t`` (B,); in flow maps, of s = t."""
    x_t = model.path.sample(x_1, x_0, t)
    value = model.predict(x_t, t, t if model.two_times else None, mask=mask).value
    return Regression(value, x_1 if model.prediction == "x1" else model.path.velocity(x_1, x_0, t), mask)


def from_x1(model: FlowModel, x1_hat: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
    """The network output (B, K, D) that stands for a clean estimate; singular at t = 1 if it is a velocity."""
    return x1_hat if model.prediction == "x1" else model.path.velocity_from_x1(x_t, x1_hat, t)


@dataclass(kw_only=True, eq=False)
class FlowMatching(Objective):
    """Flow matching (arXiv:2210.02747, eq. 14): regression of the network's own target, x_1 or velocity.

    ``velocity_loss``: the error is that of the velocity whatever the network predicts, as in ELF (arXiv:2605.10938).
    ``cross_entropy_weight`` multiplies the nats per token of the estimate: from the denoiser's own token logits if it
    has them, else through the readout (the terminal term of Diffusion-LM, arXiv:2205.14217).
    ``self_conditioning_probability`` is the share of steps in which a first estimate is fed back (arXiv:2208.04202).
    """

    feeds_back: ClassVar[bool] = True
    velocity_loss: bool = False
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
        """The cross-entropy needs tokens and a readout: ``ValueError`` if they are missing."""
        x_1 = latents.z
        t = self.time_sampler.sample(len(x_1), generator, x_1.device)
        x_0 = randn(tuple(x_1.shape), x_1, generator)
        x_t = model.path.sample(x_1, x_0, t) * latents.mask[..., None]
        self_cond = self._first_estimate(model, x_t, t, latents.mask, generator)
        output = model.predict(x_t, t, mask=latents.mask, self_cond=self_cond)
        target = x_1 if model.prediction == "x1" else model.path.velocity(x_1, x_0, t)
        # With weight 0 it is only logged; its backward pass would cost as much as any other.
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.regression_weight > 0):
            error = output.value - target
            if self.velocity_loss and model.prediction == "x1":
                (alpha, sigma), (d_alpha, d_sigma) = model.path.alpha_sigma(t, x_1), model.path.d_alpha_sigma(t, x_1)
                error = error * (d_alpha * sigma - alpha * d_sigma) / sigma.clamp(min=MIN_SIGMA)
            squared_error = masked_mean(error.square(), latents.mask)
        per_example = self.regression_weight * squared_error
        terms = {"squared_error": squared_error.mean().detach()}
        if self.cross_entropy_weight > 0:
            if tokens is None or readout is None:
                raise ValueError("cross_entropy_weight needs tokens and a readout, which these latents do not have")
            if output.token_logits is None:
                nats = readout.loss(model.x1_of(output, x_t, t), tokens.ids, tokens.mask)
            else:
                nats = masked_mean(token_nats(output.token_logits, tokens.ids), tokens.mask)
            per_example = per_example + self.cross_entropy_weight * nats
            terms["cross_entropy_nats"] = nats.mean().detach()
        return LossOutput(per_example.mean(), per_example.detach(), terms)

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
