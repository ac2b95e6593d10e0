"""Samplers followed exactly: a state is the vector of its weights over (x_1, x_0, xi_1, xi_2, ...), so that mean and
variance of its law can be read off it and no sampling error enters."""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from unittest import mock

import pytest
import torch
from torch import Tensor

from fewstep.paths import Path, linear_path, variance_preserving_path
from fewstep.samplers import FlowSampler, RuleLike, euler, heun
from tests.toys import ConstantModel

MAX_DRAWS = 40
PATHS = [linear_path(), variance_preserving_path()]
each_path = pytest.mark.parametrize("path", PATHS, ids=["linear", "variance_preserving"])
each_solver = pytest.mark.parametrize("solver", [euler, heun], ids=["euler", "heun"])


def noise(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Standard normal noise."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def unit(index: int) -> Tensor:
    """The basis vector (2 + MAX_DRAWS,) float64 of one source of randomness: 0 is x_1, 1 is x_0."""
    return torch.eye(2 + MAX_DRAWS, dtype=torch.float64)[index]


@contextmanager
def basis_noise() -> Iterator[None]:
    """Draw k of the sampler is the unit vector of xi_k at every position."""
    index = count(2)
    with mock.patch("fewstep.samplers.sampler.randn", lambda shape, like, generator: unit(next(index)).expand(shape)):
        yield


def exact_states(sampler: FlowSampler, num_steps: int, num_positions: int = 1) -> list[tuple[float, Tensor, Tensor]]:
    """(time, weight of x_1 (K,), weights of the noises (K, 1 + MAX_DRAWS)) of each state, under the true pair."""
    x_0 = unit(1).expand(1, num_positions, -1)
    model = ConstantModel(sampler.path, unit(0))
    with basis_noise():
        states = list(sampler.iterate(model, x_0, num_steps=num_steps, generator=torch.Generator()))
    return [(state.time, state.x_t[0, :, 0], state.x_t[0, :, 1:]) for state in states]


def shares_of_noise(path: Path, rule: RuleLike, num_steps: int, *, reuse_noise: bool = False) -> Tensor:
    """(N,) float64: standard deviation of the noise over what the time asks for, at the N evaluated states."""
    sampler = FlowSampler(path, reinjection=rule, reuse_noise=reuse_noise)
    return torch.stack(
        [
            weights.square().sum().sqrt() / path.schedule.sigma(torch.tensor(time, dtype=torch.float64))
            for time, _, weights in exact_states(sampler, num_steps)[:-1]
        ]
    )
