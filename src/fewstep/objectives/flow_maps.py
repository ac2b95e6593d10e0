"""Objectives of flow maps: networks of two times that learn the jump X(t, s). B batch, K positions, D dimension.

X(t, s) = (sigma_s / sigma_t) x_t + (alpha_s - alpha_t sigma_s / sigma_t) F, with F(x_t, t, s) the clean estimate that
the jump goes along. F(x_t, t, t) is the flow's own estimate. No form here divides by s - t or by sigma_s.
"""

from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fewstep.denoisers import FLOW_MAP, EstimateKind, FlowModel
from fewstep.objectives.base import Batch, Objective, Regression, from_x1, match_flow
from fewstep.objectives.derivative import estimate_and_change, forward_derivative
from fewstep.schedules import UniformTime, grid_of
from fewstep.shapes import rand

ERROR_FLOOR = 1e-3
"""Added to a squared error before the adaptive weight takes its power."""


@dataclass(kw_only=True, eq=False)
class FlowMapObjective(Objective):
    """Flow matching at s = t on the first ``instant_share`` of a batch, :meth:`jump` on the rest.

    The jumps follow the flow that the first share learns. The last ``end_share`` of the batch ends at s = 1.
    ``adaptive_power`` p weighs an example of squared error e by (e + 0.001)^-p without a gradient of its own
    (arXiv:2505.13447, eq. 22): 0 leaves the squared error, 1/2 is nearly its root.
    """

    estimate: ClassVar[EstimateKind] = FLOW_MAP
    instant_share: ClassVar[float] = 0.5
    end_share: ClassVar[float] = 0.1
    jump_passes: ClassVar[float]
    """Passes of an example with s > t (see ``passes_per_step``)."""
    adaptive_power: float = 0.0

    def __post_init__(self) -> None:
        if self.adaptive_power < 0:
            raise ValueError(f"adaptive_power is {self.adaptive_power}: expected a number >= 0")

    @abstractmethod
    def jump(self, model: FlowModel, batch: Batch, x_t: Tensor, t: Tensor, s: Tensor) -> Regression:
        """What is regressed for jumps from ``x_t`` (B', K, D) at ``t`` to ``s`` >= ``t``, (B',) each."""

    @property
    def passes_per_step(self) -> float:
        return 3 * self.instant_share + self.jump_passes * (1 - self.instant_share)

    def weigh(self, squared_error: Tensor) -> Tensor:
        return squared_error * (squared_error.detach() + ERROR_FLOOR) ** -self.adaptive_power

    def times(self, batch: Batch) -> tuple[Tensor, Tensor, int]:
        """``t`` and ``s`` (B,) with t <= s <= 1, and the number of examples with s = t, which come first."""
        size = len(batch.x_1)
        draw, other = (self.time_sampler.sample(size, batch.generator, batch.x_1.device) for _ in range(2))
        first = round(self.instant_share * size)
        last = size - min(round(self.end_share * size), size - first)
        t, s = torch.minimum(draw, other), torch.maximum(draw, other)
        # A single draw has the sampler's distribution; the smaller of two has another.
        t = torch.cat([draw[:first], t[first:last], draw[last:]])
        s = torch.cat([draw[:first], s[first:last], torch.ones_like(s[last:])])
        return t, s, first

    def regressions(self, model: FlowModel, batch: Batch, teacher: FlowModel | None) -> Iterator[Regression]:
        t, s, first = self.times(batch)
        if first > 0:
            flow = batch.rows(slice(0, first))
            yield match_flow(model.rows(slice(0, first)), flow.x_1, flow.x_0, t[:first], flow.mask)
        if first < len(t):
            model, jumps, t, s = model.rows(slice(first, None)), batch.rows(slice(first, None)), t[first:], s[first:]
            yield self.jump(model, jumps, model.path.sample(jumps.x_1, jumps.x_0, t), t, s)


@dataclass(kw_only=True, eq=False)
class MeanFlow(FlowMapObjective):
    """Mean flow (arXiv:2505.13447, eq. 6 and 9 to 11), on any path: d/dt X(t, s)(x_t) = 0 along the data's velocity.

    The estimate is regressed on where that equation holds,

        F + (sigma_s / sigma_t) (x_1 - F) + ((alpha_s sigma_t - alpha_t sigma_s) / Delta_t) dF/dt,

    with Delta_t = alpha'_t sigma_t - alpha_t sigma'_t and dF/dt taken along the conditional velocity
    alpha'_t x_1 + sigma'_t x_0. On the linear path it is the paper's u = v + (s - t) du/dt, with time reversed.
    """

    jump_passes: ClassVar[float] = 4.0

    def jump(self, model: FlowModel, batch: Batch, x_t: Tensor, t: Tensor, s: Tensor) -> Regression:
        velocity = model.path.velocity(batch.x_1, batch.x_0, t)
        estimate, change = estimate_and_change(model, x_t, velocity, t, s, batch.mask)
        now = estimate.detach()
        (alpha_t, sigma_t), (alpha_s, sigma_s) = (model.path.alpha_sigma(time, x_t) for time in (t, s))
        d_alpha, d_sigma = model.path.d_alpha_sigma(t, x_t)
        reach = (alpha_s * sigma_t - alpha_t * sigma_s) / (d_alpha * sigma_t - alpha_t * d_sigma)
        target = now + sigma_s / sigma_t * (batch.x_1 - now) + reach * change
        return Regression(from_x1(model, estimate, x_t, t), from_x1(model, target, x_t, t), batch.mask)


@dataclass(kw_only=True, eq=False)
class LagrangianSelfDistillation(FlowMapObjective):
    """Lagrangian self-distillation (arXiv:2505.18825), on any path: dX/ds(t, s) = v_s(X(t, s)).

    v is the model's own velocity, from the share with s = t. In clean estimates, with X = X(t, s),

        F + (sigma_s (alpha_s sigma_t - alpha_t sigma_s) / (sigma_t Delta_s)) dF/ds = F(X, s, s),

    and for a network that predicts velocity Delta_s / sigma_s times as much. Gradients flow through the left side and
    its derivative. At s = 1 the equation is fulfilled by every F that leaves data alone, so no jump ends there.
    """

    end_share: ClassVar[float] = 0.0
    jump_passes: ClassVar[float] = 7.0

    def jump(self, model: FlowModel, batch: Batch, x_t: Tensor, t: Tensor, s: Tensor) -> Regression:
        estimate, change = forward_derivative(
            lambda end: model.denoise(x_t, t, s=end, mask=batch.mask), (s,), (torch.ones_like(s),)
        )
        x_s, moved = end_and_change(model, x_t, t, s, estimate, change)
        with torch.no_grad():
            target = model.predict(x_s * batch.mask[..., None], s, s, mask=batch.mask).value
        return Regression(moved, target, batch.mask)


def end_and_change(
    model: FlowModel, x_t: Tensor, t: Tensor, s: Tensor, estimate: Tensor, change: Tensor
) -> tuple[Tensor, Tensor]:
    """X(t, s), and dX/ds as an output of the network at (X, s), for an estimate F and ``change`` = dF/ds, (B, K, D).

    As velocity it is (sigma'_s x_t + (alpha'_s sigma_t - alpha_t sigma'_s) F) / sigma_t + reach dF/ds with reach =
    (alpha_s sigma_t - alpha_t sigma_s) / sigma_t, as clean estimate F + (sigma_s reach / Delta_s) dF/ds. t < 1.
    """
    (alpha_t, sigma_t), (alpha_s, sigma_s) = (model.path.alpha_sigma(time, x_t) for time in (t, s))
    d_alpha, d_sigma = model.path.d_alpha_sigma(s, x_t)
    reach = (alpha_s * sigma_t - alpha_t * sigma_s) / sigma_t
    x_s = sigma_s / sigma_t * x_t + reach * estimate
    if model.prediction == "x1":
        return x_s, estimate + sigma_s / (d_alpha * sigma_s - alpha_s * d_sigma) * reach * change
    drift = (d_sigma * x_t + (d_alpha * sigma_t - alpha_t * d_sigma) * estimate) / sigma_t
    return x_s, drift + reach * change


@dataclass(kw_only=True, eq=False)
class SemigroupSelfDistillation(FlowMapObjective):
    """Progressive self-distillation (arXiv:2505.18825), on any path: X(t, s) = X(r, s) o X(t, r) for t < r < s.

    The two short jumps are the model's own, without gradient; r is uniform between t and s.
    """

    jump_passes: ClassVar[float] = 5.0

    def jump(self, model: FlowModel, batch: Batch, x_t: Tensor, t: Tensor, s: Tensor) -> Regression:
        r = t + rand((len(t),), t, batch.generator) * (s - t)
        return jump_as_two(model, x_t, (t, r, s), (r, s), batch.mask)


@dataclass(kw_only=True, eq=False)
class ShortcutModel(Objective):
    """Shortcut models (arXiv:2410.12557, section 3), on any path: a step of the sampler learns to be two half steps.

    Three quarters of a batch are flow matching at s = t. The rest are steps of the grids of N = 1, 2, 4, ... up to
    ``finest_steps`` / 2 steps that a sampler uses by default after ``time_sampler``; N is drawn first, with equal
    probability, then the step. The half steps are the model's own, without gradient; those of the finest grid, of
    ``finest_steps`` steps, are Euler steps of the flow.
    """

    estimate: ClassVar[EstimateKind] = FLOW_MAP
    instant_share: ClassVar[float] = 0.75
    finest_steps: int = 128

    def __post_init__(self) -> None:
        if self.finest_steps < 2 or self.finest_steps & (self.finest_steps - 1):
            raise ValueError(f"finest_steps is {self.finest_steps}: expected a power of 2, at least 2")
        self._grid = grid_of(self.time_sampler).times(self.finest_steps)
        self._uniform = UniformTime(stratified=True)

    @property
    def passes_per_step(self) -> float:
        return 3 + 2 * (1 - self.instant_share)

    def regressions(self, model: FlowModel, batch: Batch, teacher: FlowModel | None) -> Iterator[Regression]:
        size, device = len(batch.x_1), batch.x_1.device
        first = round(self.instant_share * size)
        if first > 0:
            flow = batch.rows(slice(0, first))
            t = self.time_sampler.sample(first, batch.generator, device)
            yield match_flow(model.rows(slice(0, first)), flow.x_1, flow.x_0, t, flow.mask)
        if first < size:
            model, steps = model.rows(slice(first, None)), batch.rows(slice(first, None))
            t, r, s, finest = self.steps(size - first, batch.generator, device)
            ends = torch.where(finest, t, r), torch.where(finest, r, s)
            yield jump_as_two(model, model.path.sample(steps.x_1, steps.x_0, t), (t, r, s), ends, steps.mask)

    def steps(
        self, batch_size: int, generator: torch.Generator, device: torch.device | str
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Start, middle and end of ``batch_size`` steps, and whether their halves are the finest: (B,) each."""
        depth = self.finest_steps.bit_length() - 1
        size, place = (self._uniform.sample(batch_size, generator).double() for _ in range(2))
        number = 2 ** (size * depth).long()
        half = self.finest_steps // (2 * number)
        start = (place * number).long() * 2 * half
        t, r, s = (self._grid[start + shift].to(device) for shift in (0, half, 2 * half))
        return t, r, s, (half == 1).to(device)


def jump_as_two(
    model: FlowModel, x_t: Tensor, times: tuple[Tensor, Tensor, Tensor], ends: tuple[Tensor, Tensor], mask: Tensor
) -> Regression:
    """The jump from t to s regressed on the estimate along which it ends where the jumps t -> r -> s end.

    ``times`` are t <= r <= s, (B,) each; ``ends`` are the end times that the network sees in the two jumps: r and s,
    or t and r for Euler steps of the flow. With F_1 and F_2 their estimates, without gradient, it is
    w F_1 + (1 - w) F_2, since x / sigma moves by the estimate times the growth of alpha / sigma, of which the first
    jump has the share

        w = sigma_s (alpha_r sigma_t - alpha_t sigma_r) / (sigma_r (alpha_s sigma_t - alpha_t sigma_s)).

    It lies in [0, 1], also where t and s nearly coincide and a quotient of displacements would be noise.
    """
    t, r, s = times
    (alpha_t, sigma_t), (alpha_r, sigma_r), (alpha_s, sigma_s) = (model.path.alpha_sigma(time, x_t) for time in times)
    part = sigma_s * (alpha_r * sigma_t - alpha_t * sigma_r)
    whole = sigma_r * (alpha_s * sigma_t - alpha_t * sigma_s)
    w = torch.where(whole > 0, part / whole.clamp(min=torch.finfo(whole.dtype).tiny), 0.0).clamp(0, 1)
    with torch.no_grad():
        first = model.denoise(x_t, t, s=ends[0], mask=mask)
        x_r = model.path.sample(first, model.path.eps_from_x1(x_t, first, t), r) * mask[..., None]
        second = model.denoise(x_r, r, s=ends[1], mask=mask)
        target = from_x1(model, w * first + (1 - w) * second, x_t, t)
    return Regression(model.predict(x_t, t, s, mask=mask).value, target, mask)
