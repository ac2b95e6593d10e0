"""Teachers in closed form and a student that can learn, for laws of distillation."""

import torch
from torch import Tensor, nn

from fewstep.denoisers import DenoiserOutput, FlowModel, PredictionType
from fewstep.paths import Path
from fewstep.shapes import expand_like
from fewstep.types import Latents
from tests.nn.builders import first, normal
from tests.toys import ExactModel, GaussianModel

MEAN = torch.tensor([0.5, -1.0], dtype=torch.float64)
COVARIANCE = torch.tensor([[1.0, 0.6], [0.6, 0.8]], dtype=torch.float64)
K, D = 3, 2


class Answering(nn.Module):
    """A network that answers by ``exact``, plus ``gain`` x_t + ``shift``, and counts the rows it is asked for."""

    def __init__(self, exact: ExactModel, prediction: PredictionType, latent_dim: int = D) -> None:
        super().__init__()
        self.exact = exact
        self.prediction = prediction
        self.gain = nn.Parameter(torch.zeros((), dtype=torch.float64))
        self.shift = nn.Parameter(torch.zeros(latent_dim, dtype=torch.float64))
        self.rows = 0

    def forward(
        self,
        x_t: Tensor,
        t: Tensor,
        s: Tensor | None = None,
        *,
        mask: Tensor | None = None,
        self_cond: Tensor | None = None,
    ) -> DenoiserOutput:
        self.rows += len(x_t)
        value = self.exact.denoise(x_t, t, mask=mask)
        if self.prediction == "velocity":
            value = self.exact.velocity_of(x_t, value, t)
        return DenoiserOutput(value + self.gain * x_t + self.shift)

    def gradient(self, loss: Tensor) -> Tensor:
        """Of ``loss`` in gain and shift, (1 + D,)."""
        return torch.cat([g.flatten() for g in torch.autograd.grad(loss, [self.gain, self.shift])])


class Mixing(ExactModel):
    """An estimate to which every position contributes, padding too: tanh of their sum."""

    def denoise(self, x_t: Tensor, t: Tensor, *, mask: Tensor | None = None, self_cond: Tensor | None = None) -> Tensor:
        """(B, K, D)."""
        return torch.tanh(x_t + 0.5 * x_t.sum(1, keepdim=True) + expand_like(t, x_t) + 0.1)


class TwoModes(ExactModel):
    """Posterior mean for numbers x_1 from 0.3 N(-1.5, 0.3^2) + 0.7 N(1, 0.3^2), positions independent, D = 1."""

    def denoise(self, x_t: Tensor, t: Tensor, *, mask: Tensor | None = None, self_cond: Tensor | None = None) -> Tensor:
        """(B, K, 1)."""
        alpha, sigma = self.path.alpha_sigma(t, x_t)
        modes, shares = x_t.new_tensor([-1.5, 1.0]), x_t.new_tensor([0.3, 0.7])
        variance = 0.09 * alpha.square() + sigma.square()
        away = x_t - alpha * modes
        probabilities = (shares.log() - away.square() / (2 * variance)).softmax(-1)
        return (probabilities * (modes + 0.09 * alpha / variance * away)).sum(-1, keepdim=True)


class SmallNetwork(nn.Module):
    """Two hidden layers on (x_t, t), each position by itself, float32."""

    def __init__(self, latent_dim: int, width: int = 48, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.body = nn.Sequential(
                nn.Linear(latent_dim + 3, width),
                nn.SiLU(),
                nn.Linear(width, width),
                nn.SiLU(),
                nn.Linear(width, latent_dim),
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
        time = expand_like(t, x_t).expand_as(x_t[..., :1])
        return DenoiserOutput(self.body(torch.cat([x_t, time, (3 * time).sin(), (3 * time).cos()], -1)))


def gaussian_flow(path: Path, prediction: PredictionType = "x1") -> FlowModel:
    """The exact flow to N(MEAN, COVARIANCE)."""
    return FlowModel(Answering(GaussianModel(path, MEAN, COVARIANCE), prediction), path, prediction)


def some_latents(batch_size: int, generator: torch.Generator, lengths: list[int] | None = None) -> Latents:
    """Gaussian data (B, K, D) with masks of ``lengths``, all K by default; zero at padding."""
    mask = first([K] * batch_size if lengths is None else lengths, K)
    z = MEAN + normal((batch_size, K, D), generator) @ torch.linalg.cholesky(COVARIANCE).T
    return Latents(z * mask[..., None], mask)
