"""Consistency models in continuous time: the estimate becomes the end of the trajectory through x_t.

B batch, K positions, D latent dimension. Along the flow the end F(x_t, t) stays where it is, dF/dt = 0: this is the
Eulerian equation (:mod:`fewstep.objectives.eulerian`) for jumps to s = 1, and needs a network of one time only.
"""

from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from fewstep.denoisers import EstimateKind, FlowModel
from fewstep.objectives.derivative import Derivative, ForwardMode
from fewstep.objectives.eulerian import estimate_and_change
from fewstep.objectives.few_step import (
    PLAIN,
    Draw,
    FewStepObjective,
    Regression,
    prediction_from_x1,
)
from fewstep.objectives.flow_objective import require_one_time
from fewstep.objectives.weights import AdaptiveWeight
from fewstep.schedules import TimeSampler
from fewstep.shapes import expand_like, masked_mean

MIN_SIGMA = 0.05
"""Where flow matching of an x_1 estimate in the velocity's scale stops to weigh more: 1 / sigma is held below 20."""


class ContinuousConsistency(FewStepObjective):
    """arXiv:2410.11081, algorithm 1, on any path: the network's output is moved by the tangent

        g = (1 - r) (v - u) + r dF/dt

    and regressed on where it arrives; v is the flow's velocity and u the one that belongs to the estimate F. The
    warm-up r rises linearly from 0, flow matching, to 1, the consistency equation alone, over the first
    ``warmup_share`` of the training. With a network that predicts velocity on the linear path g is the paper's
    (v - u + r (1 - t) du/dt), elsewhere the mixture is this project's. There are no weights over time:
    ``time_sampler`` is what lays the emphasis.

    With ``normalise_tangent`` g is replaced by g / (|g| + ``tangent_floor``), for |g| the root mean square over an
    example's own numbers, so that the floor means one thing for every K and D. The paper has the Euclidean norm and
    0.1; here the floor is 1, the scale of a whitened latent: small tangents keep their size, and with 0.1 a network
    of x_1 was seen to miss the transport. The target has no gradient. ``derivative`` is forward mode by default.

    A network that predicts x_1 has no boundary condition of its own: any constant fulfils dF/dt = 0, and training
    without an anchor diverges. So the first ``boundary_share`` of its batches stands at t = 1 and is regressed on
    x_1, without bias (this project's addition); and the tangent keeps the velocity's scale, for one that falls with
    sigma feeds the modes that grow. Where velocity is predicted, F(x, 1) = x by construction and no share is used.

    Raises ``ValueError`` for shares outside [0, 1] or a ``tangent_floor`` that is not above 0, and in use for a
    network of two times.
    """

    estimate: ClassVar[EstimateKind] = "endpoint"

    def __init__(
        self,
        time_sampler: TimeSampler,
        *,
        warmup_share: float = 0.1,
        normalise_tangent: bool = True,
        tangent_floor: float = 1.0,
        boundary_share: float = 0.25,
        derivative: Derivative | None = None,
        weight: AdaptiveWeight = PLAIN,
        cross_entropy_weight: float = 0.0,
        fisher_weight: float = 0.0,
    ) -> None:
        super().__init__(weight=weight, cross_entropy_weight=cross_entropy_weight, fisher_weight=fisher_weight)
        if not (0 <= warmup_share <= 1 and 0 <= boundary_share <= 1 and tangent_floor > 0):
            raise ValueError(
                f"warmup_share {warmup_share}, boundary_share {boundary_share}, tangent_floor {tangent_floor}:"
                " expected shares in [0, 1] and a floor above 0"
            )
        self.time_sampler = time_sampler
        self.warmup_share = warmup_share
        self.normalise_tangent = normalise_tangent
        self.tangent_floor = tangent_floor
        self.boundary_share = boundary_share
        self.derivative = ForwardMode() if derivative is None else derivative

    @property
    def passes_per_step(self) -> float:
        """Three of the pass with its gradient, the derivative's, one of a teacher, three of the terminal term."""
        return 3 + self.derivative.passes + float(self.needs_teacher) + self.terminal_passes

    @abstractmethod
    def velocity(self, model: FlowModel, draw: Draw, x_t: Tensor, t: Tensor, teacher: FlowModel | None) -> Tensor:
        """The velocity (B, K, D) that x_t moves with at ``t`` (B,), without gradient."""
        ...

    def warmup(self, progress: float) -> float:
        """r in [0, 1] after the share ``progress`` of the training."""
        return 1.0 if progress >= self.warmup_share else progress / self.warmup_share

    def regressions(self, model: FlowModel, draw: Draw, teacher: FlowModel | None) -> Sequence[Regression]:
        """One part, the whole batch."""
        require_one_time(self, model)
        t = self.time_sampler.sample(len(draw.x_1), draw.generator, draw.x_1.device)
        t, anchored = anchored_times(model, t, self.boundary_share)
        x_t = model.path.sample(draw.x_1, draw.x_0, t)
        velocity = self.velocity(model, draw, x_t, t, teacher).to(x_t.dtype)
        estimate, change = estimate_and_change(model, self.derivative, x_t, velocity, t, None, draw.mask)
        prediction = prediction_from_x1(model, estimate, x_t, t)
        tangent = self._tangent(model, draw, x_t, t, velocity, estimate.detach(), change)
        pull = draw.x_1 - prediction.detach()  # at t = 1, where x_1 is predicted
        target = prediction.detach() + torch.where(expand_like(anchored, pull), pull, tangent)
        return [Regression(slice(0, len(t)), x_t, t, prediction, target, from_data=not self.needs_teacher)]

    def _tangent(
        self, model: FlowModel, draw: Draw, x_t: Tensor, t: Tensor, velocity: Tensor, estimate: Tensor, change: Tensor
    ) -> Tensor:
        """g (B, K, D), normalised if asked."""
        r, tangent = self.warmup(draw.progress), change
        if r < 1:
            own = model.velocity_of(x_t, estimate, t)
            sigma = model.path.alpha_sigma(t, x_t)[1]
            # An estimate of x_1 that is wrong near the data has an infinite velocity; on the way it is held.
            held = (sigma / MIN_SIGMA).clamp(max=1) if model.prediction == "x1" else 1.0
            tangent = (1 - r) * held * (velocity - own) + r * change
        if not self.normalise_tangent:
            return tangent
        size = masked_mean(tangent.square(), draw.mask).sqrt()
        return tangent / (expand_like(size, tangent) + self.tangent_floor)


class ConsistencyTraining(ContinuousConsistency):
    """From data alone: the direction is the conditional velocity alpha' x_1 + sigma' x_0 of the pair.

    Its mean given x_t is the flow's velocity, so that the plain tangent is right on average; a normalised one is where
    the tangent scatters symmetrically, as for Gaussian data. A terminal cross-entropy reads the data's own tokens,
    which are those of the trajectory's end only where x_t leaves no doubt about them.
    """

    def velocity(self, model: FlowModel, draw: Draw, x_t: Tensor, t: Tensor, teacher: FlowModel | None) -> Tensor:
        """That of the pair of data and noise."""
        return model.path.velocity(draw.x_1, draw.x_0, t)


class ConsistencyDistillation(ContinuousConsistency):
    """From a trained flow, the teacher, whose velocity is the direction: its trajectories' ends are learnt.

    The teacher must have been trained on the model's path; what it predicts is its own affair.
    """

    needs_teacher: ClassVar[bool] = True

    def velocity(self, model: FlowModel, draw: Draw, x_t: Tensor, t: Tensor, teacher: FlowModel | None) -> Tensor:
        """The teacher's."""
        if teacher is None:
            raise ValueError(f"{type(self).__name__} learns from a trained flow: give it as the teacher")
        with torch.no_grad():
            return teacher.velocity(x_t, t, mask=draw.mask)


def anchored_times(model: FlowModel, t: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """``t`` (B,) with 1 in the first ``share`` of the batch, and where that is, (B,) bool; nowhere for a velocity."""
    anchored = torch.zeros_like(t, dtype=torch.bool)
    if model.prediction == "x1":
        anchored[: round(share * len(t))] = True
    return torch.where(anchored, torch.ones_like(t), t), anchored
