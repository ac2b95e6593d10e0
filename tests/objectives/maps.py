"""Flow maps to test objectives with: exact ones of Gaussian data, small ones that learn, and one that counts passes."""

import copy
import functools
from typing import Any

import torch
from torch import Tensor, nn

from fewstep.denoisers import DenoiserOutput, FlowModel, PredictionType
from fewstep.objectives import FewStepObjective, MeanFlow
from fewstep.paths import Path, linear_path
from fewstep.readouts import LinearReadout
from fewstep.schedules import UniformTime
from fewstep.types import Latents, LossOutput, TokenBatch
from tests.nn.builders import normal
from tests.toys import GaussianModel

MEAN = torch.tensor([0.5, -1.0], dtype=torch.float64)
COVARIANCE = torch.tensor([[1.0, 0.6], [0.6, 0.8]], dtype=torch.float64)
D = 2


def data(count: int, positions: int, generator: torch.Generator, dtype: torch.dtype = torch.float64) -> Latents:
    """Gaussian latents of full length."""
    z = MEAN + normal((count, positions, D), generator) @ torch.linalg.cholesky(COVARIANCE).T
    return Latents(z.to(dtype), torch.ones(count, positions).bool())


def fixed_tokens(latents: Latents) -> TokenBatch:
    return TokenBatch(torch.zeros(latents.mask.shape).long(), latents.mask)


def seed(number: int) -> torch.Generator:
    return torch.Generator().manual_seed(number)


def loss_of(objective: FewStepObjective, model: FlowModel, latents: Latents, generator: torch.Generator) -> LossOutput:
    return objective.forward(model, latents, tokens=None, readout=None, generator=generator)


class ExactMap(nn.Module):
    """The flow map of N(MEAN, COVARIANCE) as what a network of two times predicts, plus ``gain`` x + ``shift``.

    In the eigenbasis, with rho^2 = alpha^2 lambda + sigma^2, X(t, s) scales the deviation from alpha mean by
    rho_s / rho_t. Solved for the estimate, with the difference of roots made one of squares so that it is regular at
    s = t: F = mean + lambda (sigma_t alpha_s + sigma_s alpha_t) / (rho_t (sigma_t rho_s + sigma_s rho_t)) deviation.
    """

    def __init__(self, path: Path, prediction: PredictionType) -> None:
        super().__init__()
        self.config = {"two_times": True}
        self.gain = nn.Parameter(torch.tensor(0.0, dtype=torch.float64))
        self.shift = nn.Parameter(torch.zeros(D, dtype=torch.float64))
        self.path, self.prediction = path, prediction
        self.exact = GaussianModel(path, MEAN, COVARIANCE)

    def spread(self, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """alpha, sigma and rho, the last (B, 1, D)."""
        alpha, sigma = self.path.alpha_sigma(t, like)
        # Nothing in float64, but it keeps the quotient of two vanishing sigmas at s = t = 1.
        sigma = sigma + 1e-30
        return alpha, sigma, (alpha**2 * self.exact.variances + sigma**2).sqrt()

    def jump(self, x_t: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """X(t, s) itself (B, K, D)."""
        (alpha_t, _, rho_t), (alpha_s, _, rho_s) = (self.spread(time, x_t) for time in (t, s))
        deviation = (x_t - alpha_t * MEAN) @ self.exact.axes
        return alpha_s * MEAN + (deviation * rho_s / rho_t) @ self.exact.axes.T

    def forward(
        self,
        x_t: Tensor,
        t: Tensor,
        s: Tensor | None = None,
        *,
        mask: Tensor | None = None,
        self_cond: Tensor | None = None,
    ) -> DenoiserOutput:
        s = t if s is None else s
        (alpha_t, sigma_t, rho_t), (alpha_s, sigma_s, rho_s) = (self.spread(time, x_t) for time in (t, s))
        gain = sigma_t * alpha_s + sigma_s * alpha_t
        gain = gain * self.exact.variances / (rho_t * (sigma_t * rho_s + sigma_s * rho_t))
        deviation = (x_t - alpha_t * MEAN) @ self.exact.axes
        if self.prediction == "x1":
            value = MEAN + (deviation * gain) @ self.exact.axes.T
        else:
            d_alpha, d_sigma = self.path.d_alpha_sigma(t, x_t)
            at_end = d_alpha / alpha_t.clamp(min=1e-30)  # all that is left of it at t = s = 1
            speed = (d_sigma + (d_alpha * sigma_t - alpha_t * d_sigma) * gain) / sigma_t
            speed = torch.where(sigma_t < 1e-20, at_end, speed)
            value = d_alpha * MEAN + (deviation * speed) @ self.exact.axes.T
        return DenoiserOutput(value + self.gain * x_t + self.shift)


class SmallMap(nn.Module):
    """A network of two times that learns: two smooth layers over (x_t, t, s - t), each position by itself.

    At the start the end s of a jump makes no difference."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.config = {"two_times": True}
        self.body = nn.Sequential(
            nn.Linear(D + 2, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, D)
        )
        self.straight = nn.Linear(D, D)
        with torch.no_grad():  # flow matching alone leaves it so
            self.body[0].weight[:, D + 1] = 0

    def forward(
        self,
        x_t: Tensor,
        t: Tensor,
        s: Tensor | None = None,
        *,
        mask: Tensor | None = None,
        self_cond: Tensor | None = None,
    ) -> DenoiserOutput:
        s = t if s is None else s
        times = torch.stack([t, s - t], dim=-1).to(x_t.dtype)[:, None].expand(*x_t.shape[:2], 2)
        return DenoiserOutput(self.body(torch.cat([x_t, times], dim=-1)) + self.straight(x_t))


class Counter:
    """A number that is added to. (A list would be copied on its way through ``torch.func``.)"""

    def __init__(self) -> None:
        self.rows = 0


class Tally(torch.autograd.Function):
    """The identity, counted: one a row on the way, one for its forward-mode derivative, two a row on the way back."""

    @staticmethod
    def forward(x: Tensor, counter: Counter) -> Tensor:
        counter.rows += len(x)
        return x.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Counter], output: Tensor) -> None:
        ctx.counter = inputs[1]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        ctx.counter.rows += 2 * len(gradient)
        return gradient, None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, _: None) -> Tensor:
        return Tally.apply(tangent, ctx.counter)


class CountingMap(SmallMap):
    """Counts what it costs, in rows that pass through."""

    def __init__(self) -> None:
        super().__init__(width=4)
        self.counter = Counter()

    def forward(
        self,
        x_t: Tensor,
        t: Tensor,
        s: Tensor | None = None,
        *,
        mask: Tensor | None = None,
        self_cond: Tensor | None = None,
    ) -> DenoiserOutput:
        return DenoiserOutput(Tally.apply(super().forward(x_t, t, s).value, self.counter))


def measured_passes(objective: FewStepObjective, *, count: int, cross_entropy: bool = False) -> float:
    """Passes an example of one training step of ``objective`` on ``count`` examples, counted."""
    network, latents = CountingMap(), data(count, 2, seed(0), torch.float32)
    tokens, readout = (fixed_tokens(latents), LinearReadout(3, D)) if cross_entropy else (None, None)
    model = FlowModel(network, linear_path(), "velocity")
    objective.forward(model, latents, tokens=tokens, readout=readout, generator=seed(1)).loss.backward()
    return network.counter.rows / count


@functools.cache
def small_flow(prediction: PredictionType) -> FlowModel:
    """A small network of two times on the linear path that has learnt the flow, and nothing of s yet. Copy it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = FlowModel(SmallMap(), linear_path(), prediction)
    flow_only = MeanFlow(UniformTime(), instant_share=1.0, end_share=0.0)
    trained(flow_only, model, steps=200, generator=seed(0))
    return model


def errors_by_training(
    objective: FewStepObjective, prediction: PredictionType, *, steps: int = 250, rate: float = 1e-2
) -> tuple[list[float], list[float]]:
    """Transport and semigroup error of :func:`small_flow`, and of what ``objective`` makes of it."""
    model = copy.deepcopy(small_flow(prediction))
    before = [transport_error(model), semigroup_error(model)]
    trained(objective, model, steps=steps, generator=seed(1), rate=rate)
    return before, [transport_error(model), semigroup_error(model)]


def trained(
    objective: FewStepObjective, model: FlowModel, *, steps: int, generator: torch.Generator, rate: float = 1e-2
) -> None:
    """Adam on fresh Gaussian data, its rate falling to nothing."""
    optimiser = torch.optim.Adam(model.parameters(), lr=rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for step in range(steps):
        latents = data(128, 1, generator, torch.float32)
        output = objective.forward(
            model, latents, tokens=None, readout=None, generator=generator, progress=step / steps
        )
        optimiser.zero_grad()
        output.loss.backward()
        optimiser.step()
        schedule.step()


@torch.no_grad()
def transport_error(model: FlowModel) -> float:
    """Root mean square distance between one jump from noise to data and the exact transport."""
    x_0 = normal((2000, 1, D), seed(7)).float()
    zero, one = torch.zeros(2000), torch.ones(2000)
    exact = GaussianModel(model.path, MEAN, COVARIANCE).flow(x_0.double(), one)
    return float((model.jump(x_0, zero, one) - exact).square().mean().sqrt())


@torch.no_grad()
def semigroup_error(model: FlowModel) -> float:
    """Root mean square distance between one jump and two, by way of a time between."""
    generator = seed(8)
    x_1 = data(2000, 1, generator, torch.float32).z
    t, r, s = torch.rand(2000, 3, generator=generator).sort(-1).values.unbind(-1)
    x_t = model.path.sample(x_1, normal(tuple(x_1.shape), generator).float(), t)
    return float((model.jump(model.jump(x_t, t, r), r, s) - model.jump(x_t, t, s)).square().mean().sqrt())
