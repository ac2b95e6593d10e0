"""What all stages share: noise that is new at every step, a gradient for every parameter, classes from outside."""

from pathlib import Path

import pytest
import torch

from fewstep.errors import UserError
from fewstep.storage import load_checkpoint
from fewstep.training import AutoencoderModule, LanguageModelModule
from fewstep.training.command import main
from fewstep.training.module import TrainingModule
from tests.runs import Workshop
from tests.training.flows import trained_flow
from tests.training.test_data_module import data_module


def stage_of(workshop: Workshop, rank: int = 0, world_size: int = 1, seed: int = 0) -> LanguageModelModule:
    data = data_module(workshop, rank, world_size)
    return LanguageModelModule(data, network=lambda size: torch.nn.Linear(size, 1), seed=seed)


def noise(stage: TrainingModule, step: int) -> tuple[float, ...]:
    return tuple(torch.randn(4, generator=stage.step_generator(step)).tolist())


def test_every_seed_rank_and_step_has_noise_of_its_own_and_repeats_it(workshop: Workshop) -> None:
    drawn = []
    for rank in (0, 1, 2, 7):
        stage = stage_of(workshop, rank, 8)
        for stage.seed in (-1, 0, 1, 2, 12345):
            drawn += [noise(stage, step) for step in (*range(-20, 200), 2**20, 2**20 + 1)]
    assert len(set(drawn)) == len(drawn)
    again = stage_of(workshop, 7, 8, seed=12345)
    assert noise(again, 2**20 + 1) == drawn[-1]


def test_processes_draw_what_one_would_that_takes_their_batches_in_turn(workshop: Workshop) -> None:
    alone = stage_of(workshop)
    for world_size in (2, 3):
        parts = [stage_of(workshop, rank, world_size) for rank in range(world_size)]
        for sign in (1, -1):  # training, validation
            steps = [step if sign == 1 else -1 - step for step in range(4 * world_size)]
            shared = [noise(part, step) for step in steps[:4] for part in parts]
            assert shared == [noise(alone, step) for step in steps]


def test_every_trained_parameter_gets_a_gradient(workshop: Workshop, tmp_path: Path) -> None:
    # DDP waits for every gradient: one that never comes ends the run.
    runs = {"autoencoder": workshop.autoencoder.parent, "flow": trained_flow(workshop).parent}
    for stage in ("head", "language_model"):
        runs[stage] = tmp_path / stage
        assert main(workshop.arguments(stage, f"--run_dir={runs[stage]}", steps=2)) == 0
    for stage, run_dir in runs.items():
        (optimizer,) = load_checkpoint(run_dir / "checkpoints" / "last.ckpt")["optimizer_states"]
        listed = sum(len(group["params"]) for group in optimizer["param_groups"])
        assert listed == len(optimizer["state"]), f"{stage}: AdamW keeps a state of each parameter that had a gradient"


def test_a_module_that_is_no_encoder_is_refused(workshop: Workshop) -> None:
    with pytest.raises(UserError, match=r"Linear: expected what fewstep\.types\.LatentEncoder asks for"):
        AutoencoderModule(data_module(workshop), lambda size: torch.nn.Linear(size, 4), None, None)  # type: ignore[arg-type]
