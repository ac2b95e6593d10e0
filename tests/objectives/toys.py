"""Gaussian data whose flow is known, exact and small networks, and one that counts its passes. B batch, K positions."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fewstep.denoisers import FlowModel, PredictionType
from fewstep.objectives import DistributionMatching, Objective
from fewstep.paths import Path, linear_path, variance_preserving_path
from fewstep.types import Latents, LossOutput, Readout, TokenBatch
from tests.nn.builders import first, normal
from tests.toys import ExactModel, GaussianModel, ToyNetwork

D, K = 2, 3
MEAN = torch.tensor([0.5, -1.0], dtype=torch.float64)
COVARIANCE = torch.tensor([[1.0, 0.6], [0.6, 0.8]], dtype=torch.float64)

each_path = pytest.mark.parametrize(
    "path", [linear_path(), variance_preserving_path()], ids=["linear", "variance_preserving"]
)
both_predictions = pytest.mark.parametrize("prediction", ["x1", "velocity"])


def seed(number: int) -> torch.Generator:
    return torch.Generator().manual_seed(number)


def data(count: int, generator: torch.Generator, lengths: list[int] | None = None) -> Latents:
    """Gaussian latents (count, K, D) in float64, zero at padding; all K positions are real by default."""
    mask = first([K] * count if lengths is None else lengths, K)
    z = MEAN + normal((count, K, D), generator) @ torch.linalg.cholesky(COVARIANCE).T
    return Latents(z * mask[..., None], mask)


def single(latents: Latents) -> Latents:
    """The same in float32."""
    return Latents(latents.z.float(), latents.mask)


def loss_of(
    objective: Objective,
    model: FlowModel,
    latents: Latents,
    generator: torch.Generator,
    teacher: FlowModel | None = None,
    progress: float = 1.0,
    tokens: TokenBatch | None = None,
    readout: Readout | None = None,
    auxiliary: FlowModel | None = None,
) -> LossOutput:
    """The loss; that of distribution matching beside a random auxiliary network, unless there is one."""
    if isinstance(objective, DistributionMatching):
        network = Small(two_times=True, width=5).to(latents.z.dtype)
        auxiliary = auxiliary or FlowModel(network, model.path, model.prediction)
        return objective.student_loss(objective.generate(model, latents, generator), auxiliary, teacher, generator)
    given = {"tokens": tokens, "readout": readout, "generator": generator, "teacher": teacher, "progress": progress}
    return objective.forward(model, latents, **given)


def jump(model: FlowModel, x_t: Tensor, t: Tensor, s: Tensor) -> Tensor:
    """X(t, s) (B, K, D), from t to s along the estimate."""
    x1_hat = model.denoise(x_t, t, s=s)
    return model.path.sample(x1_hat, model.path.eps_from_x1(x_t, x1_hat, t), s)


def gradient(loss: Tensor, model: nn.Module) -> Tensor:
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))])


class FixedTimes:
    """The same times (B,) for every generator."""

    def __init__(self, times: list[float] | None = None) -> None:
        self.times = times

    def sample(self, batch_size: int, generator: torch.Generator, device: torch.device | str = "cpu") -> Tensor:
        return torch.rand(batch_size, generator=seed(5)) if self.times is None else torch.tensor(self.times)


class Network(ToyNetwork):
    """Base: ``answer(x_t, t, s)`` plus ``gain`` x_t + ``shift``, which are zero at the optimum."""

    def __init__(self, two_times: bool = False, latent_dim: int = D) -> None:
        super().__init__(two_times)
        self.gain = nn.Parameter(torch.tensor(0.0, dtype=torch.float64))
        self.shift = nn.Parameter(torch.zeros(latent_dim, dtype=torch.float64))

    def answer(self, x_t: Tensor, t: Tensor, s: Tensor) -> Tensor:
        raise NotImplementedError

    def value(self, x_t: Tensor, t: Tensor, s: Tensor | None, *_: object) -> Tensor:  # type: ignore[override]
        return self.answer(x_t, t, t if s is None else s) + self.gain * x_t + self.shift


class Answering(Network):
    """A network of one time that answers by the clean estimate of an exact model."""

    def __init__(self, exact: ExactModel, prediction: PredictionType, latent_dim: int = D) -> None:
        super().__init__(latent_dim=latent_dim)
        self.exact, self.prediction = exact, prediction

    def answer(self, x_t: Tensor, t: Tensor, s: Tensor) -> Tensor:
        x1_hat = self.exact.denoise(x_t, t)
        return x1_hat if self.prediction == "x1" else self.exact.velocity_of(x_t, x1_hat, t)


class End(GaussianModel):
    """The end of the exact flow's trajectory: standard deviations at t become those of the data."""

    def denoise(self, x_t: Tensor, t: Tensor, *, mask: Tensor | None = None, self_cond: Tensor | None = None) -> Tensor:
        """(B, K, D)."""
        alpha, sigma = self.path.alpha_sigma(t, x_t)
        ratio = (self.variances / (alpha**2 * self.variances + sigma**2)).sqrt()
        return self.mean + ((x_t - alpha * self.mean) @ self.axes * ratio) @ self.axes.T


def exact_flow(path: Path, prediction: PredictionType = "x1") -> FlowModel:
    """The posterior mean of the Gaussian data."""
    return FlowModel(Answering(GaussianModel(path, MEAN, COVARIANCE), prediction), path, prediction)


def exact_end(path: Path, prediction: PredictionType = "x1") -> FlowModel:
    """The ends of the exact flow's trajectories."""
    return FlowModel(Answering(End(path, MEAN, COVARIANCE), prediction), path, prediction)


class ExactMap(Network):
    """The flow map of the Gaussian data, as what a network of two times predicts.

    In the eigenbasis, with rho^2 = alpha^2 lambda + sigma^2, X(t, s) scales the deviation from alpha mean by
    rho_s / rho_t. Solved for the estimate, with the difference of roots turned into one of squares so that it is
    regular at s = t: F = mean + lambda (sigma_t alpha_s + sigma_s alpha_t) / (rho_t (sigma_t rho_s + sigma_s rho_t))
    deviation.
    """

    def __init__(self, path: Path, prediction: PredictionType) -> None:
        super().__init__(two_times=True)
        self.path, self.prediction = path, prediction
        self.exact = GaussianModel(path, MEAN, COVARIANCE)

    def answer(self, x_t: Tensor, t: Tensor, s: Tensor) -> Tensor:
        (alpha_t, sigma_t), (alpha_s, sigma_s) = (self.path.alpha_sigma(time, x_t) for time in (t, s))
        rho_t, rho_s = (
            (a**2 * self.exact.variances + b**2).sqrt() for a, b in ((alpha_t, sigma_t), (alpha_s, sigma_s))
        )
        gain = sigma_t * alpha_s + sigma_s * alpha_t
        gain = gain * self.exact.variances / (rho_t * (sigma_t * rho_s + sigma_s * rho_t))
        x1_hat = MEAN + ((x_t - alpha_t * MEAN) @ self.exact.axes * gain) @ self.exact.axes.T
        return x1_hat if self.prediction == "x1" else self.path.velocity_from_x1(x_t, x1_hat, t)


def exact_map(path: Path, prediction: PredictionType) -> FlowModel:
    return FlowModel(ExactMap(path, prediction), path, prediction)


class Small(ToyNetwork):
    """A float32 network that learns: two smooth layers over (x_t, t, s - t), each position by itself."""

    def __init__(self, two_times: bool = False, width: int = 48, latent_dim: int = D) -> None:
        super().__init__(two_times)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.body = nn.Sequential(
                nn.Linear(latent_dim + 4, width),
                nn.SiLU(),
                nn.Linear(width, width),
                nn.SiLU(),
                nn.Linear(width, latent_dim),
            )
            self.straight = nn.Linear(latent_dim, latent_dim)

    def value(self, x_t: Tensor, t: Tensor, s: Tensor | None, *_: object) -> Tensor:  # type: ignore[override]
        distance = torch.zeros_like(t) if s is None else s - t
        times = torch.stack([t, (3 * t).sin(), (3 * t).cos(), distance], -1).to(x_t.dtype)
        times = times[:, None].expand(*x_t.shape[:2], 4)
        return self.body(torch.cat([x_t, times], -1)) + self.straight(x_t)


class Wrapped(ToyNetwork):
    """A network between two functions: ``before`` sees its arguments, ``after`` its value."""

    def __init__(
        self,
        network: nn.Module,
        before: Callable[..., object] = lambda *_: None,
        after: Callable[[Tensor], Tensor] = lambda value: value,
    ) -> None:
        super().__init__(bool(network.config["two_times"]))  # type: ignore[index]
        self.network, self.before, self.after = network, before, after

    def value(self, x_t: Tensor, t: Tensor, s: Tensor | None, mask: Tensor | None, self_cond: Tensor | None) -> Tensor:
        self.before(x_t, t, s, mask, self_cond)
        return self.after(self.network(x_t, t, s, mask=mask, self_cond=self_cond).value)


class Tally(torch.autograd.Function):
    """The identity, counted in rows: once forward, once for its forward-mode derivative, twice backward."""

    @staticmethod
    def forward(x: Tensor, counter: "Counter") -> Tensor:
        counter.rows += len(x)
        return x.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, "Counter"], output: Tensor) -> None:
        ctx.counter = inputs[1]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        ctx.counter.rows += 2 * len(gradient)
        return gradient, None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, _: None) -> Tensor:
        return Tally.apply(tangent, ctx.counter)


class Counter:
    """Rows that went through :class:`Tally`. (A list would be copied on its way through ``torch.func``.)"""

    def __init__(self) -> None:
        self.rows = 0

    def __call__(self, value: Tensor) -> Tensor:
        return Tally.apply(value, self)
