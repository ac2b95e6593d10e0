"""The exact denoiser of the train latents as the flow of a sweep: only autoencoder and head are trained."""

from dataclasses import replace

import torch
from torch import Tensor, nn

from fewstep.bundle import ModelBundle
from fewstep.evaluation.sweep_texts import FlowTexts
from fewstep.paths import Path
from fewstep.pipeline import TextGenerator


class ExactFlow(nn.Module):
    """The posterior mean of a mixture of Gaussians of width ``h`` around N ``latents`` (N, K, D), equally likely.

    At x_t the component i has the weight exp(-|x_t - alpha_t z_i|^2 / (2 (sigma_t^2 + alpha_t^2 h^2))), and its own
    mean is z_i + alpha_t h^2 / (sigma_t^2 + alpha_t^2 h^2) (x_t - alpha_t z_i): Bayes' rule for Gaussians.
    """

    def __init__(self, latents: Tensor, h: float, path: Path) -> None:
        super().__init__()
        self.latents = nn.Parameter(latents.double(), requires_grad=False)
        self.h = h
        self.path = path

    def denoise(self, x_t: Tensor, t: Tensor, *, mask: Tensor | None = None, self_cond: Tensor | None = None) -> Tensor:
        """The exact clean estimate (B, K, D) at ``x_t`` (B, K, D) and ``t`` (B,)."""
        x, z = x_t.flatten(1).double(), self.latents.flatten(1)
        alpha, sigma = self.path.alpha_sigma(t, x)
        variance = (sigma.square() + alpha.square() * self.h**2).clamp(min=1e-12)
        logits = (alpha * (x @ z.T) - alpha.square() / 2 * z.square().sum(1)) / variance
        mean = logits.softmax(-1) @ z
        estimate = mean + alpha * self.h**2 / variance * (x - alpha * mean)
        return estimate.view_as(x_t).to(x_t.dtype)

    def velocity_of(self, x_t: Tensor, x1_hat: Tensor, t: Tensor) -> Tensor:
        """The velocity that belongs to the estimate."""
        return self.path.velocity_from_x1(x_t, x1_hat, t)


class ExactTexts(FlowTexts):
    """:class:`FlowTexts` with the exact denoiser in place of the model's own."""

    def __init__(
        self, bundle: ModelBundle, flow: ExactFlow, num_steps: int, reinjection: float, readouts: tuple[str, ...]
    ) -> None:
        super().__init__(TextGenerator(bundle), num_steps, f"{reinjection:g}", reinjection, 1.0, readouts)
        self.flow = flow  # type: ignore[assignment]
        self.settings = tuple(replace(one, name=f"exact, h = {flow.h:g}") for one in self.settings)


@torch.no_grad()
def train_latents(bundle: ModelBundle, ids: Tensor) -> Tensor:
    """Latents (N, K, D) of blocks ``ids`` (N, L)."""
    assert bundle.autoencoder is not None
    encode = bundle.autoencoder.encode
    return torch.cat([encode(part, torch.ones_like(part, dtype=torch.bool)).z for part in ids.split(256)])
