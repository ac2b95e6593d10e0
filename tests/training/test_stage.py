"""Noise is new at every step, and the same when a step is repeated."""

import torch

from fewstep.training import LanguageModelModule
from fewstep.training.module import TrainingModule
from tests.runs import Workshop
from tests.training.test_data_module import data_module


def stage_of(workshop: Workshop, rank: int = 0, world_size: int = 1, seed: int = 0) -> LanguageModelModule:
    data = data_module(workshop, rank, world_size)
    return LanguageModelModule(data, network=lambda size: torch.nn.Linear(size, 1), seed=seed)


def noise(stage: TrainingModule, step: int) -> tuple[float, ...]:
    return tuple(torch.randn(4, generator=stage.step_generator(step)).tolist())


def test_every_seed_rank_and_step_has_noise_of_its_own(workshop: Workshop) -> None:
    drawn = []
    for rank in (0, 1, 2, 7):
        stage = stage_of(workshop, rank, 8)
        for stage.seed in (-1, 0, 1, 2, 12345):
            drawn += [noise(stage, step) for step in (*range(-20, 200), 2**20, 2**20 + 1)]
    assert len(set(drawn)) == len(drawn)


def test_processes_draw_what_one_would_that_takes_their_batches_in_turn(workshop: Workshop) -> None:
    alone = stage_of(workshop)
    for world_size in (2, 3):
        parts = [stage_of(workshop, rank, world_size) for rank in range(world_size)]
        assert [noise(part, step) for step in range(4) for part in parts] == [
            noise(alone, step) for step in range(4 * world_size)
        ]
        held_out = [noise(part, -1 - step) for step in range(4) for part in parts]
        assert held_out == [noise(alone, -1 - step) for step in range(4 * world_size)]


def test_a_step_repeats_its_noise(workshop: Workshop) -> None:
    one, other = (stage_of(workshop, seed=3) for _ in range(2))
    noise(one, 4)
    assert noise(one, 5) == noise(other, 5)
    assert noise(one, -5) == noise(other, -5) != noise(one, 5)
