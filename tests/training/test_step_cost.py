"""What a training step does not cost: waiting for numbers, a second graph, an optimizer in many small pieces."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from torch.utils._python_dispatch import TorchDispatchMode

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


class Reads(TorchDispatchMode):
    """Counts operations by name; ``_local_scalar_dense`` is the one that hands a tensor's number to Python."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: Counter[str] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self.operations[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))


class ReadsOfASecondStep(Callback):
    """Counts in the second step of every run, from before its loss to after its optimizer step."""

    found: ClassVar[Counter[str]] = Counter()

    def __init__(self) -> None:
        self.mode: Reads | None = None

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == 1:
            self.mode = Reads()
            self.mode.__enter__()

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if self.mode is not None:
            self.mode.__exit__(None, None, None)
            ReadsOfASecondStep.found, self.mode = self.mode.operations, None


@pytest.mark.parametrize("stage", ["autoencoder", "flow", "flow from a cache", "head", "language_model"])
def test_an_unlogged_step_reads_no_number_but_the_loss_that_a_processor_checks(
    stage: str, workshop: Workshop, tmp_path: Path
) -> None:
    stage, _, cached = stage.partition(" from a ")
    watch = f"--trainer.callbacks+={__name__}.ReadsOfASecondStep"
    ReadsOfASecondStep.found = Counter()
    flags = [f"--run_dir={tmp_path / 'run'}", "--trainer.log_every_n_steps=100", watch]
    flags += [f"--model.latent_cache_dir={tmp_path / cached}"] if cached else []
    assert main(workshop.arguments(stage, *flags)) == 0
    found = ReadsOfASecondStep.found
    assert found["_fused_adamw_"] == 2, "the step was watched: one fused call for each group of weights"
    assert found["isfinite"] <= 1 and found["_local_scalar_dense"] == 1


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
    ours, theirs = (
        AveragedModel(network, use_buffers=True, **average(decay=0.7)._kwargs)
        for average in (WeightAverage, EMAWeightAveraging)
    )
    for _ in range(6):
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=generator))
        ours.update_parameters(network)
        theirs.update_parameters(network)
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6)


def test_the_average_lies_where_the_weights_do() -> None:
    """Lightning makes it before it moves the module to its device; each update would cross over otherwise."""
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    for device, expected in ((None, "meta"), ("cpu", "cpu")):
        module, average = LightningModule(), WeightAverage(device)
        module.layer = small_network()
        average.setup(trainer, module, "fit")
        module.to("meta")
        average.on_fit_start(trainer, module)
        assert {weight.device.type for weight in average._average_model.module.parameters()} == {expected}
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
