"""Networks, data and measures for the laws of consistency: Gaussian data, where the flow's end is known."""

import pytest
import torch
from torch import Tensor, nn

from fewstep.denoisers import DenoiserOutput, FlowModel, PredictionType
from fewstep.objectives.few_step import FewStepObjective
from fewstep.objectives.flow_objective import FlowObjective
from fewstep.paths import Path, linear_path, variance_preserving_path
from fewstep.samplers import FlowSampler
from fewstep.types import Latents, LossOutput
from tests.nn.builders import normal
from tests.toys import GaussianModel

V, D, K = 5, 2, 2
each_path = pytest.mark.parametrize(
    "path", [linear_path(), variance_preserving_path()], ids=["linear", "variance_preserving"]
)
both_predictions = pytest.mark.parametrize("prediction", ["x1", "velocity"])
MEAN = torch.tensor([0.5, -1.0], dtype=torch.float64)
COVARIANCE = torch.tensor([[1.0, 0.6], [0.6, 0.8]], dtype=torch.float64)


class Exact(nn.Module):
    """A network in closed form for Gaussian data, plus ``gain`` x_t + ``shift``: posterior mean, or the flow's end."""

    def __init__(self, path: Path, prediction: PredictionType, *, end: bool) -> None:
        super().__init__()
        self.gaussian = GaussianModel(path, MEAN, COVARIANCE)
        self.prediction, self.end = prediction, end
        self.gain = nn.Parameter(torch.tensor(0.0, dtype=torch.float64))
        self.shift = nn.Parameter(torch.zeros(D, dtype=torch.float64))

    def endpoint(self, x_t: Tensor, t: Tensor) -> Tensor:
        """The exact flow from ``t`` to 1, which turns standard deviations at t into those of the data."""
        model = self.gaussian
        alpha, sigma = model.path.alpha_sigma(t, x_t)
        ratio = (model.variances / (alpha**2 * model.variances + sigma**2)).sqrt()
        return model.mean + ((x_t - alpha * model.mean) @ model.axes * ratio) @ model.axes.T

    def forward(
        self,
        x_t: Tensor,
        t: Tensor,
        s: Tensor | None = None,
        *,
        mask: Tensor | None = None,
        self_cond: Tensor | None = None,
    ) -> DenoiserOutput:
        x1_hat = self.endpoint(x_t, t) if self.end else self.gaussian.denoise(x_t, t)
        value = x1_hat if self.prediction == "x1" else self.gaussian.velocity_of(x_t, x1_hat, t)
        return DenoiserOutput(value + self.gain * x_t + self.shift)


class Small(nn.Module):
    """A perceptron of (x_t, t), position by position, float64."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Linear(D + 1, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, D)
        )

    def forward(
        self,
        x_t: Tensor,
        t: Tensor,
        s: Tensor | None = None,
        *,
        mask: Tensor | None = None,
        self_cond: Tensor | None = None,
    ) -> DenoiserOutput:
        time = t.to(x_t.dtype)[:, None, None].expand(*x_t.shape[:2], 1)
        return DenoiserOutput(self.body(torch.cat([x_t, time], dim=-1)))


class PassCounter(nn.Module):
    """Counts a pass for each forward, one more for a forward-mode derivative in it, two for a backward through it."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network, self.passes = network, 0
        # One leaf a forward: what backward reaches is then known in forward mode too, whose tensors take no hooks.
        self.probes = [torch.zeros((), dtype=torch.float64, requires_grad=True) for _ in range(8)]
        for probe in self.probes:
            probe.register_hook(self._back)

    def forward(
        self,
        x_t: Tensor,
        t: Tensor,
        s: Tensor | None = None,
        *,
        mask: Tensor | None = None,
        self_cond: Tensor | None = None,
    ) -> DenoiserOutput:
        self.passes += 1 + int(torch.autograd.forward_ad.unpack_dual(x_t).tangent is not None)
        return DenoiserOutput(self.network(x_t, t, s, mask=mask, self_cond=self_cond).value + self.probes.pop())

    def _back(self, gradient: Tensor) -> None:
        self.passes += 2


def seed(number: int) -> torch.Generator:
    return torch.Generator().manual_seed(number)


def gaussian_latents(count: int, generator: torch.Generator) -> Latents:
    root = torch.linalg.cholesky(COVARIANCE)
    return Latents(MEAN + normal((count, K, D), generator) @ root.T, torch.ones(count, K).bool())


def teacher_on(path: Path, prediction: PredictionType = "x1") -> FlowModel:
    return FlowModel(Exact(path, prediction, end=False), path, prediction)


def loss_of(
    objective: FlowObjective,
    model: FlowModel,
    latents: Latents,
    generator: torch.Generator,
    teacher: FlowModel | None = None,
    progress: float = 1.0,
) -> LossOutput:
    return objective.forward(
        model, latents, tokens=None, readout=None, generator=generator, teacher=teacher, progress=progress
    )


def mean_gradients(
    objective: FlowObjective,
    model: FlowModel,
    teacher: FlowModel | None,
    generator: torch.Generator,
    *,
    progress: float = 1.0,
    batches: int = 48,
) -> tuple[Tensor, Tensor]:
    """The expected gradient (1 + D,) of ``gain`` and ``shift`` of an exact network, and its standard error."""
    rows = []
    for _ in range(batches):
        loss = loss_of(objective, model, gaussian_latents(256, generator), generator, teacher, progress).loss
        gradients = torch.autograd.grad(loss, [model.network.gain, model.network.shift])
        rows.append(torch.cat([g.flatten() for g in gradients]))
    found = torch.stack(rows)
    return found.mean(0), found.std(0) / batches**0.5


def one_step_error(model: FlowModel, generator: torch.Generator) -> float:
    """Mean squared distance between the jump 0 -> 1 and the exact transport."""
    x_0 = normal((512, K, D), generator)
    exact = GaussianModel(model.path, MEAN, COVARIANCE).flow(x_0, torch.ones(512))
    with torch.no_grad():
        found = FlowSampler(model.path).sample(model, x_0, num_steps=1, generator=generator).states[-1]
    return (found - exact).square().mean().item()


def errors_in_training(
    objective: FewStepObjective, model: FlowModel, teacher: FlowModel | None, generator: torch.Generator, steps: int
) -> list[float]:
    """One-step errors before the training, after a third of it and at its end."""
    optimiser, errors = torch.optim.Adam(model.parameters(), lr=3e-3), []
    rate = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for step in range(steps):
        if step in (0, steps // 3):
            errors.append(one_step_error(model, seed(7)))
        loss = loss_of(objective, model, gaussian_latents(128, generator), generator, teacher, step / steps).loss
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        rate.step()
    return [*errors, one_step_error(model, seed(7))]


class ThisTime:
    """Always the same times (B,), which draws nothing."""

    def __init__(self, t: Tensor) -> None:
        self.t = t

    def sample(self, batch_size: int, generator: torch.Generator, device: torch.device | str = "cpu") -> Tensor:
        return self.t


def gradient(loss: Tensor, model: FlowModel) -> Tensor:
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))])
