"""Noise is new at every step, and the same when a step is repeated."""

from itertools import product

import torch

from fewstep.training import LanguageModelModule
from fewstep.training.stage import Stage
from tests.runs import Workshop
from tests.training.test_data_module import data_module


class Ranked(LanguageModelModule):
    """A stage that takes itself for one process of several."""

    global_rank = 0


def noise(stage: Stage, step: int) -> tuple[float, ...]:
    return tuple(torch.randn(4, generator=stage.step_generator(step)).tolist())


def test_every_seed_rank_and_step_has_noise_of_its_own(workshop: Workshop) -> None:
    stage = Ranked(data_module(workshop), network=lambda size: torch.nn.Linear(size, 1))
    drawn = []
    for seed, rank in product((-1, 0, 1, 2, 12345), (0, 1, 2, 7)):
        stage.seed, stage.global_rank = seed, rank
        drawn += [noise(stage, step) for step in (*range(-20, 200), 2**20, 2**20 + 1)]
    assert len(set(drawn)) == len(drawn)


def test_a_step_repeats_its_noise(workshop: Workshop) -> None:
    one, other = (
        Ranked(data_module(workshop), network=lambda size: torch.nn.Linear(size, 1), seed=3) for _ in range(2)
    )
    noise(one, 4)
    assert noise(one, 5) == noise(other, 5)
    assert noise(one, -5) == noise(other, -5) != noise(one, 5)
