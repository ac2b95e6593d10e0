"""Token processes and latent mixtures whose diagnostics are known in closed form."""

import json
import math
from typing import Any

import torch
from torch import Tensor

from fewstep.diagnostics.results import Diagnostic
from fewstep.paths import Path
from fewstep.shapes import expand_like, rand


def seeded(seed: int = 0) -> torch.Generator:
    """A CPU generator."""
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Standard normal numbers."""
    return torch.randn(shape, generator=seeded(seed), dtype=dtype)


def normal_cdf(x: Tensor) -> Tensor:
    """Phi."""
    return torch.special.ndtr(x)


def plain(result: Diagnostic) -> Any:
    """``result`` through JSON and back; fails on NaN and infinity."""
    assert all(row.name for row in result.rows())
    picture = result.picture()
    if picture is not None:
        assert all(len(line.x) == len(line.y) for line in picture.series)
    return json.loads(json.dumps(result.to_dict(), allow_nan=False))


class MarkovReadout:
    """A chain of ``num_tokens`` tokens that ignores the latent: x_1 ~ ``initial`` (V,), x_i ~ ``transition`` (V, V)."""

    def __init__(self, initial: Tensor, transition: Tensor, num_tokens: int) -> None:
        self.initial, self.transition, self.num_tokens = initial.double(), transition.double(), num_tokens

    def draw(self, z: Tensor, generator: torch.Generator) -> Tensor:
        """Independent chains (B, L)."""
        p, tokens = self.initial.expand(len(z), -1), []
        for _ in range(self.num_tokens):
            token = torch.multinomial(p, 1, generator=generator)[:, 0]
            tokens.append(token)
            p = self.transition[token]
        return torch.stack(tokens, 1)

    def logits(self, z: Tensor, ids: Tensor) -> Tensor:
        """Log-probabilities (B, L, V), minus infinity where a token is impossible."""
        first = self.initial.expand(len(ids), 1, -1)
        return torch.cat([first, self.transition[ids[:, :-1]]], 1).log()

    def committed_and_marginal_nats(self) -> tuple[float, float]:
        """Numerator and denominator of CCI for infinitely many draws, summed over the tokens."""
        p, committed, marginal = self.initial, _entropy(self.initial), _entropy(self.initial)
        for _ in range(self.num_tokens - 1):
            committed += p @ torch.special.entr(self.transition).sum(-1)
            p = p @ self.transition
            marginal += _entropy(p)
        return float(committed), float(marginal)


class BalancedCopies(MarkovReadout):
    """x_1 uniform, then copies of it; call after call the first tokens take turns, so that V | M draws are exact."""

    def __init__(self, vocabulary: int, num_tokens: int) -> None:
        super().__init__(torch.full((vocabulary,), 1 / vocabulary), torch.eye(vocabulary), num_tokens)
        self.calls = 0

    def draw(self, z: Tensor, generator: torch.Generator) -> Tensor:
        """The next token in turn, L times."""
        token = self.calls % len(self.initial)
        self.calls += 1
        return torch.full((len(z), self.num_tokens), token)


class TableReadout:
    """Any first-order head: logits (L, V + 1, V) by position and earlier token, row V standing for none."""

    def __init__(self, table: Tensor) -> None:
        self.table = table

    def draw(self, z: Tensor, generator: torch.Generator) -> Tensor:
        """Chains (B, L) by inverse CDF."""
        num_tokens, _, vocabulary = self.table.shape
        u = rand((len(z), num_tokens), self.table, generator).double()
        token, tokens = torch.full((len(z),), vocabulary), []
        for i in range(num_tokens):
            cdf = self.table[i, token].double().softmax(-1).cumsum(-1)
            token = (cdf <= u[:, i, None]).sum(-1).clamp(max=vocabulary - 1)
            tokens.append(token)
        return torch.stack(tokens, 1)

    def logits(self, z: Tensor, ids: Tensor) -> Tensor:
        """(B, L, V)."""
        num_tokens, _, vocabulary = self.table.shape
        before = torch.cat([torch.full((len(ids), 1), vocabulary), ids[:, :-1]], 1)
        return self.table[torch.arange(num_tokens), before]


class Mixture:
    """Gaussians of standard deviation ``spread`` around ``centres`` (M, n), equally likely, on a path."""

    def __init__(self, path: Path, centres: Tensor, spread: float) -> None:
        self.path, self.centres, self.spread = path, centres, spread

    def logits(self, x: Tensor) -> Tensor:
        """Nearest-centre readout: logits (..., M) whose argmax is the nearest centre of ``x`` (..., n)."""
        return x @ self.centres.T - self.centres.square().sum(-1) / 2

    def denoise(self, x_t: Tensor, t: Tensor) -> Tensor:
        """Posterior mean (B, ..., n) at ``t`` (B,)."""
        alpha, sigma = self.path.alpha_sigma(t, x_t)
        variance, gain = self._scales(alpha, sigma)
        centre = self._responsibilities(x_t, alpha, variance) @ self.centres
        return gain * x_t + (1 - alpha * gain) * centre

    def velocity(self, x_t: Tensor, t: Tensor) -> Tensor:
        """The exact velocity (B, ..., n)."""
        return self.path.velocity_from_x1(x_t, self.denoise(x_t, t), t)

    def velocity_jacobian(self, x_t: Tensor, t: Tensor) -> Tensor:
        """d v / d x (B, n, n) in closed form, for ``x_t`` (B, n): from the posterior covariance of the centres."""
        alpha, sigma = (one[..., None] for one in self.path.alpha_sigma(t, x_t))
        d_alpha, d_sigma = (one[..., None] for one in self.path.d_alpha_sigma(t, x_t))
        variance, gain = self._scales(alpha, sigma)
        weight = self._responsibilities(x_t, alpha[..., 0], variance[..., 0])
        deviation = self.centres - (weight @ self.centres)[:, None]
        covariance = torch.einsum("bm,bmi,bmj->bij", weight, deviation, deviation)
        identity = torch.eye(x_t.shape[-1], dtype=x_t.dtype)
        d_mean = gain * identity + (1 - alpha * gain) * alpha / variance * covariance
        return (d_alpha - d_sigma * alpha / sigma) * d_mean + d_sigma / sigma * identity

    def _scales(self, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        variance = alpha**2 * self.spread**2 + sigma**2
        return variance, alpha * self.spread**2 / variance

    def _responsibilities(self, x_t: Tensor, alpha: Tensor, variance: Tensor) -> Tensor:
        squared = (x_t[..., None, :] - expand_like(alpha, x_t[..., None]) * self.centres).square().sum(-1)
        return (-squared / (2 * variance)).softmax(-1)


def two_token_mixture(path: Path, half_distance: float, spread: float) -> Mixture:
    """Two Gaussians on a line, at plus and minus ``half_distance``; latents (B, L, 1) are L independent ones.

    By symmetry the posterior mean has the sign of x_t: it flips a token with probability Phi(-|z| / s), exactly as
    isotropic noise does.
    """
    return Mixture(path, torch.tensor([[-half_distance], [half_distance]], dtype=torch.float64), spread)


def folded_tube_mass(reach: Tensor, half_distance: float, spread: float) -> Tensor:
    """Share of the two-token mixture that lies within ``reach`` of its boundary at 0."""
    return normal_cdf((reach - half_distance) / spread) - normal_cdf((-reach - half_distance) / spread)


def _entropy(p: Tensor) -> float:
    return float(torch.special.entr(p).sum())


LOG_2 = math.log(2)
