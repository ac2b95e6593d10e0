"""Models whose clean estimate is known in closed form, to test samplers against. States are (B, K, D), times (B,)."""

import torch
from torch import Tensor, nn

from fewstep.denoisers import DenoiserOutput
from fewstep.paths import Path
from fewstep.shapes import expand_like


class ToyNetwork(nn.Module):
    """Base of the toy networks, which answer by :meth:`value` and may have token logits."""

    def __init__(self, two_times: bool = False) -> None:
        super().__init__()
        self.config = {"two_times": two_times}

    def value(self, x_t: Tensor, t: Tensor, s: Tensor | None, mask: Tensor | None, self_cond: Tensor | None) -> Tensor:
        """What the network predicts, (B, K, D)."""
        raise NotImplementedError

    def token_logits(self, value: Tensor, mask: Tensor | None) -> Tensor | None:
        """Logits of its own for a predicted value; none by default."""
        return None

    def forward(
        self,
        x_t: Tensor,
        t: Tensor,
        s: Tensor | None = None,
        *,
        mask: Tensor | None = None,
        self_cond: Tensor | None = None,
    ) -> DenoiserOutput:
        value = self.value(x_t, t, s, mask, self_cond)
        return DenoiserOutput(value, self.token_logits(value, mask))


class ExactModel:
    """Base of the toys: a denoiser on a path, with the velocity that belongs to its estimate."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def velocity_of(self, x_t: Tensor, x1_hat: Tensor, t: Tensor) -> Tensor:
        """The velocity (B, K, D) of ``x1_hat`` at (x_t, t)."""
        return self.path.velocity_from_x1(x_t, x1_hat, t)


class GaussianModel(ExactModel):
    """Posterior mean and flow for independent positions x_1 ~ N(mean, covariance); mean (D,), covariance (D, D).

    In the eigenbasis of the covariance the marginal at t has variance alpha^2 lambda + sigma^2, and the flow scales
    the deviation from alpha mean by the ratio of standard deviations.
    """

    def __init__(self, path: Path, mean: Tensor, covariance: Tensor) -> None:
        super().__init__(path)
        self.mean = mean
        self.variances, self.axes = torch.linalg.eigh(covariance)

    def denoise(self, x_t: Tensor, t: Tensor, *, mask: Tensor | None = None, self_cond: Tensor | None = None) -> Tensor:
        """E[x_1 | x_t] (B, K, D)."""
        alpha, sigma = self.path.alpha_sigma(t, x_t)
        gain = alpha * self.variances / (alpha**2 * self.variances + sigma**2)
        return self.mean + ((x_t - alpha * self.mean) @ self.axes * gain) @ self.axes.T

    def flow(self, x_0: Tensor, s: Tensor) -> Tensor:
        """The exact ODE solution at ``s`` (B,) from ``x_0`` (B, K, D) at time 0."""
        alpha, sigma = self.path.alpha_sigma(s, x_0)
        return alpha * self.mean + (x_0 @ self.axes * (alpha**2 * self.variances + sigma**2).sqrt()) @ self.axes.T


class PointSetModel(ExactModel):
    """Posterior mean for x_1 drawn from ``points`` (M, K, D) with probabilities ``weights`` (M,)."""

    def __init__(self, path: Path, points: Tensor, weights: Tensor) -> None:
        super().__init__(path)
        self.points = points
        self.weights = weights

    def denoise(self, x_t: Tensor, t: Tensor, *, mask: Tensor | None = None, self_cond: Tensor | None = None) -> Tensor:
        """E[x_1 | x_t] (B, K, D): the points averaged by their posterior probabilities."""
        alpha, sigma = self.path.alpha_sigma(t, x_t.unsqueeze(1))
        squared_distance = (x_t.unsqueeze(1) - alpha * self.points).square().flatten(2).sum(-1)
        logits = self.weights.log() - squared_distance / (2 * sigma.flatten(1) ** 2)
        return torch.einsum("bm,mkd->bkd", logits.softmax(-1), self.points)


class ConstantModel(ExactModel):
    """Always predicts ``x_1`` (K, D): with x_0 as noise, the true pair."""

    def __init__(self, path: Path, x_1: Tensor) -> None:
        super().__init__(path)
        self.x_1 = x_1

    def denoise(self, x_t: Tensor, t: Tensor, *, mask: Tensor | None = None, self_cond: Tensor | None = None) -> Tensor:
        """``x_1`` for the whole batch."""
        return self.x_1.expand_as(x_t)


class MixingModel(ExactModel):
    """A smooth nonlinear function of the whole sequence, of time and of the self-conditioning; it ignores the mask.

    Whatever stands at a padding position therefore reaches the others, and it answers with non-zero values there.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.calls: list[tuple[Tensor, Tensor, Tensor | None]] = []

    def denoise(self, x_t: Tensor, t: Tensor, *, mask: Tensor | None = None, self_cond: Tensor | None = None) -> Tensor:
        """tanh of a mixture (B, K, D); each call is kept as (x_t, t, self_cond)."""
        self.calls.append((x_t, t, self_cond))
        previous = torch.zeros_like(x_t) if self_cond is None else self_cond
        mixed = x_t + 0.5 * x_t.sum(1, keepdim=True) + 0.3 * previous.sum(1, keepdim=True)
        return torch.tanh(mixed + expand_like(t, x_t) + 0.1)
