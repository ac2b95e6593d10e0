"""Noise by example: the same seed gives the same sample whatever batch it falls into."""

import pytest
import torch
from torch import Tensor

from fewstep.paths import variance_preserving_path
from fewstep.samplers import FlowSampler, Solver
from fewstep.shapes import example_generators, randn
from tests.samplers.bases import each_solver
from tests.toys import MixingModel


@each_solver
@pytest.mark.parametrize("rule", ["0.6", "by_position:0.8"])
def test_a_seed_gives_the_same_samples_at_any_batch_size(solver: Solver, rule: str) -> None:
    path = variance_preserving_path()
    # Some examples of the batch are decided altogether, others not: nobody's draws may shift with a neighbour.
    decidedness = lambda x1_hat, mask: (8 * x1_hat.mean(-1)).sigmoid().round()  # noqa: E731
    sampler = FlowSampler(path, solver=solver, reinjection=rule, decidedness=decidedness)

    def samples(batches: list[int]) -> Tensor:
        start, ends = 0, []
        for count in batches:
            generators = example_generators(11, start, count)
            x_0 = randn((count, 3, 5), torch.empty(0), generators)
            x_1 = sampler.sample(MixingModel(path), x_0, num_steps=3, generator=generators).x_1
            # What a readout would draw next from the same generator does not depend on the batch either.
            ends.append(torch.cat([x_1.flatten(1), randn((count, 1), x_0, generators)], 1))
            start += count
        return torch.cat(ends)

    for batches in ([1] * 6, [2, 4]):
        torch.testing.assert_close(samples(batches), samples([6]), rtol=0, atol=1e-6)


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
