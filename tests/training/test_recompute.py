"""Blocks that are computed again in the backward pass: the same numbers, in less memory."""

from pathlib import Path

import pytest
import torch

from fewstep.cli.exit_codes import EXIT_USER_ERROR, errors_to_exit_code
from fewstep.cli.train import main
from fewstep.denoisers import RegressionDenoiser
from fewstep.storage import load_checkpoint
from fewstep.training.callbacks import RecomputedBlocks
from tests.runs import Workshop, logged
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
    assert errors_to_exit_code(main, flow_arguments(workshop, "lagrangian", tmp_path, RECOMPUTE)) == EXIT_USER_ERROR
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("fewstep")]
    assert len(errors) == 1 and "recompute.blocks is true, but" in errors[0] and "leave it out" in errors[0]


def test_a_layer_more_keeps_its_input_alone_for_the_backward_pass() -> None:
    width, positions, batch = 16, 32, 4
    numbers = []
    for depth in (2, 6):
        network = RegressionDenoiser(8, positions, width=width, depth=depth, num_heads=2)
        RecomputedBlocks(blocks=True).on_fit_start(None, network)
        kept: dict[int, int] = {}  # by storage: the same tensor may be kept more than once

        def keep(tensor: torch.Tensor, kept: dict[int, int] = kept) -> torch.Tensor:
            kept[tensor.untyped_storage().data_ptr()] = tensor.numel()
            return tensor

        weights = {parameter.untyped_storage().data_ptr() for parameter in network.parameters()}
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            network(torch.ones(batch, positions, 8), torch.full((batch,), 0.5))
        numbers.append(sum(count for storage, count in kept.items() if storage not in weights))
    assert numbers[1] - numbers[0] == pytest.approx(4 * batch * positions * width, rel=0.15)
