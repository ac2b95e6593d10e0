"""What a training step does not cost: a second graph, an optimizer that steps weight by weight."""

from pathlib import Path

import pytest
import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging
from torch import Tensor, nn

from fewstep.cli.train import main
from fewstep.denoisers import FlowModel, RegressionDenoiser
from fewstep.errors import UserError
from fewstep.objectives import FlowMatching
from fewstep.paths import linear_path
from fewstep.schedules import UniformTime
from fewstep.training import OptimizerSettings
from fewstep.training.callbacks import CompiledBlocks, WeightAverage
from fewstep.types import Latents
from tests.nn.builders import randomised
from tests.runs import Workshop, logged
from tests.training.flows import flow_arguments


class Kept:
    """Numbers that autograd keeps for the backward pass."""

    def __init__(self) -> None:
        self.numbers = 0

    def __call__(self, tensor: Tensor) -> Tensor:
        self.numbers += tensor.numel()
        return tensor


def test_self_conditioning_keeps_no_second_graph(generator: torch.Generator) -> None:
    network = randomised(lambda: RegressionDenoiser(3, 4, width=8, depth=1, num_heads=2, self_conditioning=True))
    model = FlowModel(network.float(), linear_path(), "x1")
    latents = Latents(torch.randn(2, 4, 3, generator=generator), torch.ones(2, 4).bool())
    kept, passes = [], []
    network.body.register_forward_hook(lambda *_: passes.append(torch.is_grad_enabled()))
    for probability in (0.0, 1.0):
        objective = FlowMatching(UniformTime(), self_conditioning_probability=probability)
        count = Kept()
        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            objective.forward(model, latents, tokens=None, readout=None, generator=torch.Generator().manual_seed(0))
        kept.append(count.numbers)
    assert passes == [True, False, True]
    assert kept[0] == kept[1] > 0


def small_network() -> nn.Sequential:
    return randomised(lambda: nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2))).float()


def test_the_fused_optimizer_steps_as_the_plain_one_does(generator: torch.Generator) -> None:
    inputs = torch.randn(30, 4, 3, generator=generator)
    settings = OptimizerSettings(learning_rate=0.05, warmup_steps=3, weight_decay=0.3)
    fused, plain = small_network(), small_network()
    optimizer, schedule = settings.build(fused.parameters(), 30)
    twin, twin_schedule = settings.build(plain.parameters(), 30)
    assert all(group["fused"] for group in optimizer.param_groups)
    for group in twin.param_groups:
        group["fused"] = False
    for batch in inputs:
        for network, one, rate in ((fused, optimizer, schedule), (plain, twin, twin_schedule)):
            one.zero_grad()
            network(batch).square().mean().backward()
            one.step()
            rate.step()
    for ours, theirs, start in zip(fused.parameters(), plain.parameters(), small_network().parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
        assert (ours - start).abs().max() > 0.1


@pytest.mark.parametrize("precision", ["bf16-mixed", "32"])
def test_gradients_are_clipped_at_every_precision(precision: str, workshop: Workshop, tmp_path: Path) -> None:
    """Lightning refuses to clip for an optimizer that says it undoes the scaling of gradients itself."""
    flags = [f"--run_dir={tmp_path}", f"--trainer.precision={precision}", "--trainer.gradient_clip_val=1e-30"]
    settings = ["--model.init_args.optimizer.warmup_steps=0", "--model.init_args.optimizer.weight_decay=0"]
    # Clipped to nothing against epsilon, no gradient moves a weight: the loss on held-out text stays what it was.
    assert main(workshop.arguments("flow", *flags, *settings)) == 0
    first, last = (value for _, value in sorted(logged(tmp_path)["val/loss"].items()))
    assert first == last


def test_weights_where_torch_has_no_fused_step_get_the_plain_one() -> None:
    with torch.device("meta"):
        optimizer, _ = OptimizerSettings().build(nn.Linear(2, 2).parameters(), 10)
    assert not any(group["fused"] for group in optimizer.param_groups)


def test_the_average_is_the_one_of_lightning(generator: torch.Generator) -> None:
    network = small_network()
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


def test_the_average_lies_where_the_weights_do() -> None:
    """Lightning makes it before it moves the module to its device; each update would cross over otherwise."""
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    module, average = LightningModule(), WeightAverage()
    module.layer = small_network()
    average.setup(trainer, module, "fit")
    module.to("meta")
    average.on_fit_start(trainer, module)
    assert {weight.device.type for weight in average._average_model.module.parameters()} == {"meta"}
    assert average._average_model.n_averaged.device.type == "cpu"


def losses(run_dir: Path) -> list[float]:
    return [loss for _, loss in sorted(logged(run_dir)["train/loss"].items())]


slow = pytest.mark.slow


@pytest.mark.parametrize("stage", ["flow", pytest.param("autoencoder", marks=slow), pytest.param("head", marks=slow)])
def test_compiled_blocks_train_to_the_same_losses(stage: str, workshop: Workshop, tmp_path: Path) -> None:
    found, compiled = [], []
    for name, flags in (("plain", []), ("compiled", ["--compile.backend=aot_eager"])):
        torch._dynamo.utils.counters.clear()
        assert main(workshop.arguments(stage, f"--run_dir={tmp_path / name}", *flags)) == 0
        found.append(losses(tmp_path / name))
        compiled.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
    assert len(found[0]) == 4 and found[1] == pytest.approx(found[0], rel=1e-5)
    assert compiled[0] == 0 and compiled[1] > 0


def test_an_unknown_backend_is_named_in_one_line() -> None:
    with pytest.raises(UserError, match=r"compile\.backend is 'nvcc': expected one of .*inductor.*, or null"):
        CompiledBlocks("nvcc")


@slow
def test_an_objective_of_forward_derivatives_trains_with_compiled_blocks(workshop: Workshop, tmp_path: Path) -> None:
    found = []
    for name, flags in (("plain", []), ("compiled", ["--compile.backend=aot_eager"])):
        assert main(flow_arguments(workshop, "mean_flow", tmp_path / name, *flags)) == 0
        found.append(losses(tmp_path / name))
    assert found[1] == pytest.approx(found[0], rel=1e-5)
