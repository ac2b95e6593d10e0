"""What a training step computes: the same numbers however it is computed."""

from pathlib import Path

import pytest
import torch
from lightning import LightningModule
from lightning.pytorch.callbacks import EMAWeightAveraging
from torch import nn

from fewstep.errors import UserError
from fewstep.objectives import OBJECTIVES
from fewstep.training.callbacks.weights import WeightAverage
from fewstep.training.command import main
from tests.nn.builders import randomised
from tests.runs import Workshop, logged
from tests.training.flows import flow_arguments, upon_a_flow
from tests.training.test_resume import assert_same_end


def test_gradients_are_clipped_under_bf16(workshop: Workshop, tmp_path: Path) -> None:
    """Lightning refuses to clip for an optimizer that says it undoes the scaling of gradients itself."""
    flags = [f"--run_dir={tmp_path}", "--trainer.precision=bf16-mixed", "--trainer.gradient_clip_val=1e-30"]
    settings = ["--model.init_args.optimizer.warmup_steps=0", "--model.init_args.optimizer.weight_decay=0"]
    # Clipped to nothing against epsilon, no gradient moves a weight: the loss on held-out text stays what it was.
    assert main(workshop.arguments("flow", *flags, *settings)) == 0
    first, last = (value for _, value in sorted(logged(tmp_path)["val/loss"].items()))
    assert first == last


def test_the_average_is_the_one_of_lightning(generator: torch.Generator) -> None:
    network = randomised(lambda: nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2))).float()
    modules = LightningModule(), LightningModule()
    for module in modules:
        module.network = network
    averages = WeightAverage(decay=0.7), EMAWeightAveraging(decay=0.7)
    for average, module in zip(averages, modules, strict=True):
        average.setup(None, module, "fit")
    ours, theirs = (average._average_model for average in averages)
    for _ in range(6):
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=generator))
        ours.update_parameters(modules[0])
        theirs.update_parameters(modules[1])
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("stage", "flag"),
    [
        ("flow", "--recompute.blocks=true"),
        pytest.param("autoencoder", "--compile.backend=aot_eager", marks=pytest.mark.slow),
        pytest.param("head", "--recompute.blocks=true", marks=pytest.mark.slow),
        pytest.param("mean_flow", "--compile.backend=aot_eager", marks=pytest.mark.slow),
        pytest.param("distribution_matching", "--compile.backend=aot_eager", marks=pytest.mark.slow),
        pytest.param("distribution_matching", "--recompute.blocks=true", marks=pytest.mark.slow),
    ],
)
def test_compiled_and_recomputed_blocks_train_to_the_same_losses(
    stage: str, flag: str, workshop: Workshop, tmp_path: Path
) -> None:
    runs = [tmp_path / "plain", tmp_path / "changed"]
    torch._dynamo.utils.counters.clear()
    for run_dir, flags in zip(runs, ([], [flag]), strict=True):
        own = workshop.arguments(stage, f"--run_dir={run_dir}", *flags)
        assert main(upon_a_flow(workshop, stage, run_dir, *flags) if stage in OBJECTIVES else own) == 0
    plain, changed = (logged(run_dir) for run_dir in runs)
    assert len(plain["train/loss"]) == 4
    if "compile" in flag:
        assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0
        assert changed["train/loss"] == pytest.approx(plain["train/loss"], rel=1e-5)
        return
    for name in ("train/loss", "val/loss", "train/grad_norm"):
        assert changed[name] == plain[name]
    assert_same_end(*runs)


def test_gradients_of_a_forward_derivative_are_refused_in_a_line(workshop: Workshop, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^recompute.blocks is true, but [^\n]*leave it out$"):
        main(flow_arguments(workshop, "lagrangian", tmp_path, "--recompute.blocks=true"))
