"""Consistency in discrete steps whose gap shrinks during training. B batch, K positions, D latent dimension."""

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from fewstep.denoisers import EstimateKind, FlowModel, PredictionType
from fewstep.objectives.consistency import anchored_times
from fewstep.objectives.few_step import PLAIN, Draw, FewStepObjective, Regression, prediction_from_x1
from fewstep.objectives.flow_objective import require_one_time
from fewstep.objectives.weights import AdaptiveWeight
from fewstep.schedules import TimeSampler
from fewstep.shapes import expand_like


class EasyConsistency(FewStepObjective):
    """arXiv:2406.14548: the estimate at x_t is regressed on the model's own at x_r, on the same pair of data and noise
    and nearer to the data, without gradient.

    The stage a counts from 0 to ``num_stages`` - 1 in equal shares of the training. For a network that predicts
    velocity the time to go shrinks by a share of itself, 1 - r = (1 - t) (1 - ``factor`` ^ -a): the paper's schedule
    without its adjustment near the data, on time instead of the noise level. At a = 0, r is 1 and the target x_1
    itself, which is flow matching; from then on each stage divides the gap r - t by ``factor``. The last gap bounds the
    bias, for the pair's step from t to r is the flow's only on average and to first order.

    A network that predicts x_1 has no boundary condition of its own, and errors may grow where gaps shrink towards the
    data. Its gap is ``factor`` ^ -a at every time, r = 1 where that passes the data, and from the second stage on the
    first ``boundary_share`` of its batches stands at t = 1 with target x_1 (this project's additions).

    ``weight=AdaptiveWeight(0.5, floor)`` is the paper's robust weight 1 / sqrt(|error|^2 + floor), and keeps the size
    of the gradient through the stages. From the second stage on a terminal cross-entropy reads the tokens found at the
    target.

    Raises ``ValueError`` for fewer than 1 stage, a factor that is not above 1 or a share outside [0, 1], and in use for
    a network of two times.
    """

    estimate: ClassVar[EstimateKind] = "endpoint"

    def __init__(
        self,
        time_sampler: TimeSampler,
        *,
        num_stages: int = 8,
        factor: float = 2.0,
        boundary_share: float = 0.1,
        weight: AdaptiveWeight = PLAIN,
        cross_entropy_weight: float = 0.0,
        fisher_weight: float = 0.0,
    ) -> None:
        super().__init__(weight=weight, cross_entropy_weight=cross_entropy_weight, fisher_weight=fisher_weight)
        if num_stages < 1 or factor <= 1 or not 0 <= boundary_share <= 1:
            raise ValueError(
                f"num_stages {num_stages}, factor {factor}, boundary_share {boundary_share}:"
                " expected at least 1 stage, a factor above 1 and a share in [0, 1]"
            )
        self.time_sampler = time_sampler
        self.num_stages = num_stages
        self.factor = factor
        self.boundary_share = boundary_share

    @property
    def passes_per_step(self) -> float:
        """Three of the pass with its gradient, one of the target's in all stages but the first, three of the terminal
        term; the mean over the training."""
        return 3 + (1 - 1 / self.num_stages) + self.terminal_passes

    def stage(self, progress: float) -> int:
        """The stage a that training is in after the share ``progress`` of it."""
        return min(int(progress * self.num_stages), self.num_stages - 1)

    def target_time(self, t: Tensor, progress: float, prediction: PredictionType) -> Tensor:
        """r (B,) in (t, 1] for ``t`` (B,) in (0, 1]. Where r and t are one number in their precision, r is 1."""
        gap = self.factor ** -self.stage(progress)
        r = (t + gap).clamp(max=1) if prediction == "x1" else 1 - (1 - t) * (1 - gap)
        return torch.where(r > t, r, torch.ones_like(r))

    def regressions(self, model: FlowModel, draw: Draw, teacher: FlowModel | None) -> Sequence[Regression]:
        """One part, the whole batch."""
        require_one_time(self, model)
        t = self.time_sampler.sample(len(draw.x_1), draw.generator, draw.x_1.device)
        if self.stage(draw.progress) > 0:
            t, _ = anchored_times(model, t, self.boundary_share)
        x_t = model.path.sample(draw.x_1, draw.x_0, t)
        aim = self._aim(model, draw, self.target_time(t, draw.progress, model.prediction))
        prediction = prediction_from_x1(model, model.denoise(x_t, t, mask=draw.mask), x_t, t)
        target = prediction_from_x1(model, aim, x_t, t)
        from_data = self.stage(draw.progress) == 0
        return [Regression(slice(0, len(t)), x_t, t, prediction, target, from_data=from_data)]

    def _aim(self, model: FlowModel, draw: Draw, r: Tensor) -> Tensor:
        """The estimate (B, K, D) at ``r`` (B,), and x_1 where r = 1."""
        if self.stage(draw.progress) == 0:
            return draw.x_1
        with torch.no_grad():
            x_r = model.path.sample(draw.x_1, draw.x_0, r)
            estimate = model.denoise(x_r, r, mask=draw.mask)
        return torch.where(expand_like(r >= 1, estimate), draw.x_1.to(estimate.dtype), estimate)
