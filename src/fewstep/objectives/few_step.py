"""The frame of all few-step objectives: a prediction, a target, and what their difference costs.

B batch, L tokens, K positions, D latent dimension. A file an objective says only how prediction and target are made.
"""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.denoisers import FlowModel
from fewstep.objectives.flow_objective import FlowObjective
from fewstep.objectives.weights import AdaptiveWeight, fisher_nats
from fewstep.readouts import ParallelReadout
from fewstep.shapes import masked_mean, randn
from fewstep.types import Latents, LossOutput, TokenBatch

PLAIN = AdaptiveWeight()


@dataclass(frozen=True)
class Draw:
    """One batch on its way from noise ``x_0`` to data ``x_1``, both (B, K, D), with ``mask`` (B, K).

    ``generator`` draws what else is needed; ``progress`` in [0, 1] is the share of the training that is done.
    """

    x_1: Tensor
    x_0: Tensor
    mask: Tensor
    generator: torch.Generator
    progress: float

    def rows(self, rows: slice) -> "Draw":
        """Some of the examples."""
        return Draw(self.x_1[rows], self.x_0[rows], self.mask[rows], self.generator, self.progress)


@dataclass(frozen=True)
class Regression:
    """Some examples of a batch, ``rows``, at states ``x_t`` (B', K, D) and times ``t`` (B',), and what is regressed.

    ``prediction`` and ``target`` (B', K, D) lie in the space that the network predicts, the target without gradient,
    and both mean a clean estimate by :func:`x1_from_prediction` at (``x_t``, ``t``), which the terms through the
    readout use. ``from_data`` tells that the jump to t = 1 shall end at the data's own tokens; else it shall end at
    those that the readout finds at the target.
    """

    rows: slice
    x_t: Tensor
    t: Tensor
    prediction: Tensor
    target: Tensor
    from_data: bool = True


class FewStepObjective(FlowObjective):
    """Base of the objectives whose loss is a squared error to a target that training makes itself.

    ``weight`` weighs the squared error by its size. With ``cross_entropy_weight`` above 0 the jump to t = 1 is read by
    the readout, whose nats per token are added: it shall land on the right side of the boundary. With ``fisher_weight``
    the error is also measured in the readout's Fisher metric at the target (:func:`fisher_nats`), in nats per token.
    Both are 0 by default. Raises ``ValueError`` for a negative one.
    """

    def __init__(
        self, *, weight: AdaptiveWeight = PLAIN, cross_entropy_weight: float = 0.0, fisher_weight: float = 0.0
    ) -> None:
        if min(cross_entropy_weight, fisher_weight) < 0:
            raise ValueError(
                f"cross_entropy_weight {cross_entropy_weight}, fisher_weight {fisher_weight}: expected both >= 0"
            )
        self.weight = weight
        self.cross_entropy_weight = cross_entropy_weight
        self.fisher_weight = fisher_weight

    @property
    def terminal_passes(self) -> float:
        """Passes of the cross-entropy at t = 1: one with its gradient where it has a weight, else none."""
        return 3.0 if self.cross_entropy_weight > 0 else 0.0

    @abstractmethod
    def regressions(self, model: FlowModel, draw: Draw, teacher: FlowModel | None) -> Sequence[Regression]:
        """What is regressed on this batch: every example once, in order."""
        ...

    def forward(
        self,
        model: FlowModel,
        latents: Latents,
        *,
        tokens: TokenBatch | None,
        readout: ParallelReadout | None,
        generator: torch.Generator,
        teacher: FlowModel | None = None,
        progress: float = 1.0,
    ) -> LossOutput:
        """See :class:`FlowObjective`; ``terms`` holds the plain squared error and what else has a weight."""
        if self.needs_teacher and teacher is None:
            raise ValueError(f"{type(self).__name__} learns from a trained flow: give it as the teacher")
        real = latents.mask[..., None]
        x_0 = randn(tuple(latents.z.shape), latents.z, generator) * real
        draw = Draw(latents.z * real, x_0, latents.mask, generator, progress)
        errors, totals, extra = [], [], []
        for part in self.regressions(model, draw, teacher):
            squared_error = masked_mean((part.prediction - part.target).square(), draw.mask[part.rows])
            added = self._through_readout(model, part, draw, tokens, readout)
            errors.append(squared_error.detach())
            totals.append(self.weight(squared_error) * squared_error + sum(added.values()))
            extra.append({name: value.detach() for name, value in added.items()})
        per_example = torch.cat(totals)
        terms = {"squared_error": torch.cat(errors).mean()}
        terms |= {name: torch.cat([values[name] for values in extra]).mean() for name in extra[0]}
        return LossOutput(per_example.mean(), per_example.detach(), terms)

    def _through_readout(
        self,
        model: FlowModel,
        part: Regression,
        draw: Draw,
        tokens: TokenBatch | None,
        readout: ParallelReadout | None,
    ) -> dict[str, Tensor]:
        """The weighted terms through the readout, by name, (B',) each."""
        if self.cross_entropy_weight == 0 and self.fisher_weight == 0:
            return {}
        if readout is None or tokens is None:
            raise ValueError(
                "cross_entropy_weight and fisher_weight need a readout and tokens: these latents have none"
            )
        mask, found = draw.mask[part.rows], {}
        aim = x1_from_prediction(model, part.target, part.x_t, part.t).detach()
        if self.fisher_weight > 0:
            error = x1_from_prediction(model, part.prediction, part.x_t, part.t) - aim
            found["fisher"] = self.fisher_weight * fisher_nats(readout, aim, error, mask)
        if self.cross_entropy_weight > 0:
            end = torch.ones_like(part.t)
            landed = model.denoise(part.x_t, part.t, s=end, mask=mask)
            ids, seen = tokens.ids[part.rows], tokens.mask[part.rows]
            if not part.from_data:
                with torch.no_grad():
                    ids = readout(aim, mask).argmax(-1)
            found["cross_entropy"] = self.cross_entropy_weight * readout.loss(landed, ids, seen)
        return found


def x1_from_prediction(model: FlowModel, value: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
    """The clean estimate (B, K, D) that ``value``, in the space which the network predicts, stands for."""
    return value if model.prediction == "x1" else model.path.x1_from_velocity(x_t, value, t)


def prediction_from_x1(model: FlowModel, x1_hat: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
    """The inverse of :func:`x1_from_prediction`; singular at t = 1 where velocity is predicted."""
    return x1_hat if model.prediction == "x1" else model.path.velocity_from_x1(x_t, x1_hat, t)


def x1_from_jump(model: FlowModel, x_s: Tensor, x_t: Tensor, t: Tensor, s: Tensor) -> Tensor:
    """The estimate towards which a jump must go so that X(t, s) = ``x_s`` (B, K, D); ``s`` > ``t``, both (B,).

    X(t, s) = (sigma_s / sigma_t) x_t + (alpha_s - alpha_t sigma_s / sigma_t) x1_hat, solved for x1_hat.
    """
    (alpha_t, sigma_t), (alpha_s, sigma_s) = (model.path.alpha_sigma(time, x_t) for time in (t, s))
    return (sigma_t * x_s - sigma_s * x_t) / (alpha_s * sigma_t - alpha_t * sigma_s)
