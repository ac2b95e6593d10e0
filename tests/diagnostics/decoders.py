"""Decoders whose sharpness is known in closed form. B examples, L tokens, V vocabulary, n numbers in one latent."""

from collections.abc import Callable

import torch
from torch import Tensor

BACKWARD_COST = 2  # of a backward pass, in evaluations of the decoder
FORWARD_MODE_COST = 3  # of a forward-mode pass with the evaluation in it, counted high


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


class Counted:
    """A decoder that adds up what it is used for, in evaluations of the whole batch."""

    def __init__(self, decode: LinearReadout | SmoothReadout) -> None:
        self.decode = decode
        self.cost = 0

    def __call__(self, z: Tensor) -> Tensor:
        if torch._C._functorch.is_functorch_wrapped_tensor(z):
            self.cost += FORWARD_MODE_COST
        else:
            self.cost += 1 + BACKWARD_COST * z.requires_grad
        return self.decode(z)


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
