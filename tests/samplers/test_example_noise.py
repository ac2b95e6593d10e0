"""Noise by example: the same seed gives the same sample whatever batch it falls into."""

import pytest
import torch
from torch import Tensor

from fewstep.paths import variance_preserving_path
from fewstep.samplers import FlowSampler
from fewstep.shapes import example_generators, randn
from tests.toys import MixingModel


def _samples(seed: int, batches: list[int]) -> Tensor:
    path, start, ends = variance_preserving_path(), 0, []
    sampler = FlowSampler(path, solver="heun", reinjection=0.6)
    for count in batches:
        generators = example_generators(seed, start, count)
        x_0 = randn((count, 3, 5), torch.empty(0), generators)
        ends.append(sampler.sample(MixingModel(path), x_0, num_steps=3, generator=generators).x_1)
        start += count
    return torch.cat(ends)


def test_a_seed_gives_the_same_samples_at_any_batch_size() -> None:
    together = _samples(11, [6])
    for batches in ([1] * 6, [2, 4], [5, 1]):
        torch.testing.assert_close(_samples(11, batches), together, rtol=0, atol=1e-6)


def test_neighbouring_seeds_do_not_share_examples() -> None:
    seeds = [g.initial_seed() for seed in range(200) for g in example_generators(seed, 0, 50)]
    assert len(set(seeds)) == len(seeds)


def test_noise_by_example_is_standard_normal_and_uncorrelated_between_neighbours() -> None:
    noise = randn((400, 8, 8), torch.empty(0), example_generators(0, 0, 400)).flatten(1)
    assert abs(noise.mean().item()) < 0.02 and abs(noise.std().item() - 1) < 0.02
    correlation = (noise[1:] * noise[:-1]).mean().item()
    assert abs(correlation) < 0.02


@pytest.mark.parametrize(("start", "count"), [(-1, 2), (0, -2)])
def test_examples_are_counted_from_0(start: int, count: int) -> None:
    with pytest.raises(ValueError, match=f"start is {start} and count {count}"):
        example_generators(0, start, count)
