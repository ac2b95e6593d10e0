"""Samplers followed exactly: a state is the vector of its weights over (x_1, x_0, xi_1, xi_2, ...), so that mean and
variance of its law can be read off it and no sampling error enters."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.paths import Path
from fewstep.samplers import FlowSampler, NoiseSource, Reinjection
from fewstep.schedules import UniformGrid
from fewstep.shapes import Generators
from tests.toys import ConstantModel

MAX_DRAWS = 40


@dataclass(frozen=True)
class BasisNoise:
    """Draw k is the unit vector of xi_k at every position; with ``reused`` all are xi_1."""

    reused: bool = False

    def draws(self, like: Tensor, generator: Generators) -> Iterator[Tensor]:
        """See :class:`fewstep.samplers.NoiseSource`."""
        for k in range(MAX_DRAWS):
            yield unit(2 if self.reused else 2 + k).expand(like.shape)


def unit(index: int) -> Tensor:
    """The basis vector (2 + MAX_DRAWS,) float64 of one source of randomness: 0 is x_1, 1 is x_0."""
    return torch.eye(2 + MAX_DRAWS, dtype=torch.float64)[index]


def true_pair(path: Path) -> ConstantModel:
    """The model that always answers with x_1 itself."""
    return ConstantModel(path, unit(0))


def exact_states(sampler: FlowSampler, num_steps: int, num_positions: int = 1) -> list[tuple[float, Tensor, Tensor]]:
    """(time, weight of x_1 (K,), weights of the noises (K, 1 + MAX_DRAWS)) of each state, under the true pair."""
    x_0 = unit(1).expand(1, num_positions, -1)
    states = sampler.iterate(true_pair(sampler.path), x_0, num_steps=num_steps, generator=torch.Generator())
    return [(state.time, state.x_t[0, :, 0], state.x_t[0, :, 1:]) for state in states]


def shares_of_noise(path: Path, reinjection: Reinjection, num_steps: int, noise: NoiseSource | None = None) -> Tensor:
    """(N,) float64: standard deviation of the noise over what the time asks for, at the N evaluated states."""
    sampler = FlowSampler(path, None, UniformGrid(), reinjection, noise=BasisNoise() if noise is None else noise)
    return torch.stack(
        [
            weights.square().sum().sqrt() / path.schedule.sigma(torch.tensor(time, dtype=torch.float64))
            for time, _, weights in exact_states(sampler, num_steps)[:-1]
        ]
    )
