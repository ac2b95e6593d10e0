"""Small networks for laws: built from a seed, in float64, with no layer left at its zero start."""

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor, nn

M = TypeVar("M", bound=nn.Module)


def seeded(build: Callable[[], M], seed: int = 0) -> M:
    """The module of ``build`` in float64 and eval mode, as it initialises itself after seeding torch."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build().double().eval()


def randomised(build: Callable[[], M], seed: int = 0, std: float = 0.4) -> M:
    """The same with normal noise on every parameter, so that each of them matters."""
    module = seeded(build, seed)
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += std * normal(tuple(parameter.shape), generator)
    return module


def normal(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Standard normal numbers in float64."""
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def first(lengths: list[int], total: int) -> Tensor:
    """Mask (B, total), true at the first ``lengths[b]`` positions of row b."""
    return torch.arange(total) < torch.tensor(lengths)[:, None]
