"""Lengths and directions in latent space. Legend: B examples, n numbers in one latent."""

import math

import torch
from torch import Tensor

from fewstep.shapes import expand_like, randn


def rms(z: Tensor) -> float:
    """Root mean square of all numbers in ``z``, whatever its shape: the unit that displacements are given in."""
    return float(z.double().square().mean().sqrt())


def numbers_per_latent(z: Tensor) -> int:
    """n, how many numbers one latent of ``z`` (B, ...) has."""
    return math.prod(z.shape[1:])


def norms(x: Tensor) -> Tensor:
    """Euclidean norm of each row of ``x`` (B, ...): (B,) float64."""
    return x.double().flatten(1).square().sum(1).sqrt()


def unit_rows(x: Tensor) -> Tensor:
    """``x`` (B, ...) with each row divided by its norm; a row of zeros, or one that is not finite, becomes zeros."""
    length = norms(x)
    usable = (length > 0) & length.isfinite()
    scaled = x.double() / expand_like(length.where(usable, 1.0), x)
    return torch.where(expand_like(usable, x), scaled, 0.0).to(x.dtype)


def random_directions(like: Tensor, generator: torch.Generator) -> Tensor:
    """Unit vectors (B, ...) uniform on the sphere of R^n, one a row, with the shape and dtype of ``like`` (B, ...)."""
    return unit_rows(randn(tuple(like.shape), like, generator).to(like.dtype))
