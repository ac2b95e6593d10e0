"""Consistency models in continuous time: the estimate becomes the end of the trajectory through x_t.

B batch, K positions, D latent dimension. Along the flow the end F(x_t, t) stays where it is, dF/dt = 0.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch

from fewstep.denoisers import ENDPOINT, EstimateKind, FlowModel
from fewstep.objectives.base import MIN_SIGMA, Batch, Objective, Regression, from_x1
from fewstep.objectives.derivative import estimate_and_change
from fewstep.shapes import expand_like, masked_mean

BOUNDARY_SHARE = 0.25
"""Share of a batch at t = 1 if the network predicts x_1. Without it training on closed-form data diverged."""


@dataclass(kw_only=True, eq=False)
class ContinuousConsistency(Objective):
    """Continuous-time consistency (arXiv:2410.11081, algorithm 1), on any path: the output moves along the tangent

        g = (1 - r) (v - u) + r dF/dt

    with v the flow's velocity and u the one that belongs to the estimate F. The warm-up r rises linearly from 0, flow
    matching, to 1, the consistency equation alone, over the first ``warmup_share`` of the training. The regression is
    on F + g / (|g| + 1), |g| the root mean square over an example's numbers. (The paper has the Euclidean norm and 0.1;
    with that floor a network of x_1 missed the transport.)

    A network that predicts x_1 has no boundary condition, since any constant fulfils dF/dt = 0. So a quarter of each
    batch is trained at t = 1 with target x_1, and the tangent is kept in velocity units; scaled by sigma it was
    unstable. A network that predicts velocity has F(x, 1) = x by construction.
    """

    estimate: ClassVar[EstimateKind] = ENDPOINT
    warmup_share: float = 0.1

    def __post_init__(self) -> None:
        if not 0 <= self.warmup_share <= 1:
            raise ValueError(f"warmup_share is {self.warmup_share}: expected a share of the training in [0, 1]")

    @property
    def passes_per_step(self) -> float:
        return 4.0 + float(self.needs_teacher)

    def regressions(self, model: FlowModel, batch: Batch, teacher: FlowModel | None) -> Iterator[Regression]:
        t = self.time_sampler.sample(len(batch.x_1), batch.generator, batch.x_1.device)
        anchored = torch.zeros_like(t, dtype=torch.bool)
        if model.prediction == "x1":
            anchored[: round(BOUNDARY_SHARE * len(t))] = True
            t = torch.where(anchored, torch.ones_like(t), t)
        x_t = model.path.sample(batch.x_1, batch.x_0, t)
        if teacher is not None and self.needs_teacher:
            with torch.no_grad():
                velocity = teacher.velocity(x_t, t, mask=batch.mask).to(x_t.dtype)
        else:
            velocity = model.path.velocity(batch.x_1, batch.x_0, t).to(x_t.dtype)
        estimate, change = estimate_and_change(model, x_t, velocity, t, None, batch.mask)
        prediction = from_x1(model, estimate, x_t, t)
        now = prediction.detach()
        tangent = change
        if batch.progress < self.warmup_share:
            r = batch.progress / self.warmup_share
            own = model.path.velocity_from_x1(x_t, estimate.detach(), t)
            sigma = model.path.alpha_sigma(t, x_t)[1]
            # An x_1 estimate that is wrong near the data has an infinite velocity.
            held = (sigma / MIN_SIGMA).clamp(max=1) if model.prediction == "x1" else 1.0
            tangent = (1 - r) * held * (velocity - own) + r * change
        size = masked_mean(tangent.square(), batch.mask).sqrt()
        step = tangent / (expand_like(size, tangent) + 1)
        target = now + torch.where(expand_like(anchored, now), batch.x_1 - now, step)
        yield Regression(prediction, target, batch.mask)


@dataclass(kw_only=True, eq=False)
class ConsistencyTraining(ContinuousConsistency):
    """From data alone: v is the conditional velocity alpha'_t x_1 + sigma'_t x_0, whose mean given x_t is the flow's.

    The plain tangent is then right on average; the normalised one if it scatters symmetrically, as for Gaussian data.
    """


@dataclass(kw_only=True, eq=False)
class ConsistencyDistillation(ContinuousConsistency):
    """From a trained flow on the same path: v is the teacher's velocity, the ends of its trajectories are learnt."""

    needs_teacher: ClassVar[bool] = True
