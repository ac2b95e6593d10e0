"""Blocks that are computed again in the backward pass: the same numbers, in less memory."""

from pathlib import Path

import pytest
import torch

from benchmarks import plan as planning
from benchmarks.matmuls import Recorder
from fewstep.cli.edge import EXIT_USER_ERROR, run
from fewstep.cli.train import main
from fewstep.denoisers import RegressionDenoiser
from fewstep.storage import load_checkpoint
from fewstep.training.callbacks import RecomputedBlocks
from tests.runs import Workshop, logged, start
from tests.training.flows import flow_arguments
from tests.training.test_resume import assert_equal

slow = pytest.mark.slow
RECOMPUTE = "--recompute.blocks=true"


def assert_same_runs(plain: Path, other: Path) -> None:
    assert len(logged(plain)["train/loss"]) == 4
    for name in ("train/loss", "val/loss", "train/grad_norm"):
        assert logged(plain)[name] == logged(other)[name]
    one, two = (load_checkpoint(run / "checkpoints" / "last.ckpt") for run in (plain, other))
    for key in ("state_dict", "current_model_state", "optimizer_states"):
        assert_equal(one[key], two[key], key)


@pytest.mark.parametrize(
    "stage",
    ["flow", *(pytest.param(stage, marks=slow) for stage in ("autoencoder", "head", "language_model"))],
)
def test_recomputed_blocks_train_to_the_same_bits(stage: str, workshop: Workshop, tmp_path: Path) -> None:
    for name, flags in (("plain", []), ("recomputed", [RECOMPUTE])):
        assert main(workshop.arguments(stage, f"--run_dir={tmp_path / name}", *flags)) == 0
    assert_same_runs(tmp_path / "plain", tmp_path / "recomputed")


def test_gradients_of_a_forward_derivative_are_refused_in_a_line(
    workshop: Workshop, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(main, flow_arguments(workshop, "lagrangian", tmp_path, RECOMPUTE)) == EXIT_USER_ERROR
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("fewstep")]
    assert len(errors) == 1 and "recompute.blocks is true, but" in errors[0] and "FiniteDifference" in errors[0]


@slow
def test_recomputed_blocks_in_parts_over_two_processes_train_to_the_same_bits(
    workshop: Workshop, tmp_path: Path
) -> None:
    for name, flags in (("plain", []), ("recomputed", [RECOMPUTE])):
        flags += [f"--run_dir={tmp_path / name}", "--trainer.accelerator=cpu", "--trainer.devices=2"]
        process = start(workshop.arguments("flow", *flags, "--trainer.strategy=fsdp"))
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
    assert_same_runs(tmp_path / "plain", tmp_path / "recomputed")


def test_a_layer_more_costs_its_input_alone() -> None:
    """In numbers of two bytes a position and channel, of the peak of a pass back and forth; as the plan counts it."""
    width, positions, batch = 32, 256, 8
    machine = planning.Machine(1000.0, 0.5, 80.0, 0.1, 40.0, 30.0)
    found, planned = [], []
    for depth in (2, 6):
        network = RegressionDenoiser(planning.LATENT_DIM, positions, width=width, depth=depth, num_heads=2)
        RecomputedBlocks(blocks=True).on_fit_start(None, network)
        peaks = []
        for rows in (batch, 2 * batch):
            network.zero_grad(set_to_none=True)
            with Recorder() as recorder:
                with torch.autocast("cpu", dtype=torch.bfloat16):
                    output = network(torch.ones(rows, positions, planning.LATENT_DIM), torch.full((rows,), 0.5)).value
                output.float().square().mean().backward()
            peaks.append(recorder.peak_bytes)
        found.append(peaks[1] - peaks[0])
        size = planning.Size("tiny", width, depth)
        planned.append(planning.activation_bytes(size, positions, batch, machine, recompute=True))
    assert found[1] - found[0] == pytest.approx(planned[1] - planned[0], rel=0.15)
