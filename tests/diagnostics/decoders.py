"""Decoders and token processes known in closed form. B examples, L tokens, V vocabulary, n numbers in one latent."""

import json
import math
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from fewstep.diagnostics.result import Result
from fewstep.shapes import rand

LOG_2 = math.log(2)


def seeded(seed: int = 0) -> torch.Generator:
    """A CPU generator."""
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Standard normal numbers."""
    return torch.randn(*shape, generator=seeded(seed), dtype=torch.float64).to(dtype)


class LinearReadout:
    """Logits (B, L, V) = weight z + bias, with weight (L, V, n) and bias (L, V); latents (B, ...) of n numbers."""

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        self.weight = weight
        self.bias = torch.zeros(weight.shape[:2], dtype=weight.dtype) if bias is None else bias

    def __call__(self, z: Tensor) -> Tensor:
        return torch.einsum("lvn,bn->blv", self.weight, z.flatten(1)) + self.bias

    def fisher(self, z: Tensor) -> Tensor:
        """F (B, n, n) = sum_i W_i' (diag p_i - p_i p_i') W_i."""
        p = self(z).softmax(-1)
        inner = torch.diag_embed(p) - p[..., :, None] * p[..., None, :]
        return torch.einsum("lvn,blvw,lwm->bnm", self.weight, inner, self.weight)


def two_token_readout(*normals: Tensor, bias: Tensor | None = None) -> LinearReadout:
    """One position for each of the vectors (n,): its margin is that vector times z, plus ``bias`` (L,)."""
    weight = torch.stack([torch.stack([vector, torch.zeros_like(vector)]) for vector in normals])
    offsets = None if bias is None else torch.stack([bias, torch.zeros_like(bias)], -1)
    return LinearReadout(weight, offsets)


class SmoothReadout:
    """Logits (B, L, V) of a random two-layer network in n numbers; ``scale`` sets how sharp it is."""

    def __init__(
        self,
        n: int,
        num_tokens: int,
        vocab_size: int,
        *,
        scale: float = 3.0,
        seed: int = 0,
        dtype: torch.dtype = torch.float64,
    ) -> None:
        self.inner = normal(32, n, seed=seed, dtype=dtype) / n**0.5
        self.outer = scale * normal(num_tokens, vocab_size, 32, seed=seed + 1, dtype=dtype) / 32**0.5

    def __call__(self, z: Tensor) -> Tensor:
        hidden = torch.tanh(z.flatten(1).to(self.inner.dtype) @ self.inner.T)
        return torch.einsum("lvh,bh->blv", self.outer, hidden)


class ScalingDecoder:
    """Outputs (B, n) = singular values (n,) times z: F is diagonal, with their squares."""

    def __init__(self, singular_values: Tensor) -> None:
        self.singular_values = singular_values

    def __call__(self, z: Tensor) -> Tensor:
        return z.flatten(1) * self.singular_values


class ConstantReadout:
    """The same logits (L, V) whatever the latent."""

    def __init__(self, logits: Tensor) -> None:
        self.logits = logits

    def __call__(self, z: Tensor) -> Tensor:
        return self.logits.expand(len(z), *self.logits.shape)


class ParallelConditionals:
    """A readout without memory, ``decode`` from latents (B, ...) to logits (B, L, V), as conditionals."""

    def __init__(self, decode: Callable[[Tensor], Tensor]) -> None:
        self.decode = decode

    def draw(self, z: Tensor, generator: torch.Generator) -> Tensor:
        """Token ids (B, L), every position drawn by itself."""
        probabilities = self.decode(z).double().softmax(-1)
        return torch.multinomial(probabilities.flatten(0, 1), 1, generator=generator).view(probabilities.shape[:2])

    def logits(self, z: Tensor, ids: Tensor) -> Tensor:
        """Logits (B, L, V), the same whatever ``ids`` are."""
        return self.decode(z)


def plain(result: Result) -> Any:
    """``result`` through JSON and back; fails on NaN and infinity."""
    assert all(row.name for row in result.rows)
    assert all(len(line.x) == len(line.y) for line in result.curves.values())
    return json.loads(json.dumps(asdict(result), allow_nan=False))


def heights(result: Result, key: str) -> Tensor:
    """y of a curve."""
    return torch.tensor(result.curves[key].y, dtype=torch.float64)


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


def markov(initial: Tensor, transition: Tensor, num_tokens: int) -> TableReadout:
    """A chain that ignores the latent: x_1 ~ ``initial`` (V,), x_i ~ ``transition`` (V, V)."""
    return TableReadout(torch.cat([transition, initial[None]]).double().log().expand(num_tokens, -1, -1))


def committed_and_marginal_nats(initial: Tensor, transition: Tensor, num_tokens: int) -> tuple[float, float]:
    """Numerator and denominator of CCI of :func:`markov` for infinitely many draws, summed over the tokens."""
    p, committed, marginal = initial, torch.special.entr(initial).sum(), torch.special.entr(initial).sum()
    for _ in range(num_tokens - 1):
        committed = committed + p @ torch.special.entr(transition).sum(-1)
        p = p @ transition
        marginal = marginal + torch.special.entr(p).sum()
    return float(committed), float(marginal)


class BalancedCopies(TableReadout):
    """x_1 uniform, then copies of it; call after call the first tokens take turns, so that V | M draws are exact."""

    def __init__(self, vocabulary: int, num_tokens: int, transition: Tensor | None = None) -> None:
        transition = torch.eye(vocabulary) if transition is None else transition
        super().__init__(markov(torch.full((vocabulary,), 1 / vocabulary), transition, num_tokens).table)
        self.calls = 0

    def draw(self, z: Tensor, generator: torch.Generator) -> Tensor:
        """The next token in turn, L times."""
        num_tokens, _, vocabulary = self.table.shape
        self.calls += 1
        return torch.full((len(z), num_tokens), (self.calls - 1) % vocabulary)
