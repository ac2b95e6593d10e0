"""What holds on a CUDA GPU: its numbers are the CPU's, its runs resume. ``pytest -m cuda``; skipped without one."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from fewstep.denoisers import FlowModel, RegressionDenoiser
from fewstep.objectives import FlowMatching
from fewstep.objectives.derivative import estimate_and_change, forward_derivative
from fewstep.paths import linear_path
from fewstep.pipeline import TextGenerator
from fewstep.schedules import LogitNormalTime
from fewstep.shapes import example_generators, rand, randn
from fewstep.storage import load_checkpoint
from fewstep.training.command import main
from fewstep.types import Latents
from tests.bundles import tiny_bundle
from tests.nn.builders import randomised
from tests.runs import Workshop, logged
from tests.training.flows import trained_flow

DEVICE = "cuda"
pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(DEVICE == "cuda" and not torch.cuda.is_available(), reason="no CUDA GPU"),
]


def flow_of(two_times: bool = False) -> FlowModel:
    """A small flow in float32 on the CPU; the same at every call."""
    sizes = {"width": 32, "depth": 2, "num_heads": 2, "max_frequency": 4.0}
    network = randomised(lambda: RegressionDenoiser(4, 6, two_times=two_times, **sizes), std=0.1)
    return FlowModel(network.float(), linear_path(), "velocity")


def latents(device: str) -> Latents:
    """A batch of latents (8, 6, 4), the last row of which is padded."""
    z = torch.randn(8, 6, 4, generator=torch.Generator().manual_seed(0))
    mask = torch.ones(8, 6, dtype=torch.bool)
    mask[-1, 3:] = False
    return Latents((z * mask[..., None]).to(device), mask.to(device))


@pytest.mark.parametrize("readout", ["parallel", "head"])
def test_a_seed_gives_the_same_text_on_both_devices(readout: str) -> None:
    here, there = (
        TextGenerator(tiny_bundle().to(device)).generate(16, 4, seed=3, readout=readout, reinjection=0.5)
        for device in ("cpu", DEVICE)
    )
    torch.testing.assert_close(there.x_1, here.x_1, rtol=0, atol=5e-3)
    same = there.ids == here.ids
    assert same.float().mean() > 0.9, "but for ties in the last bits, and what the head writes after one"


def test_noise_of_a_cpu_generator_is_the_same_on_the_gpu_and_that_of_a_gpu_generator_is_drawn_there() -> None:
    like = torch.zeros((), device=DEVICE)
    for draw in (randn, rand):
        there = draw((3, 5), like, example_generators(1, 0, 3))
        assert there.device.type == like.device.type
        assert torch.equal(there.cpu(), draw((3, 5), torch.zeros(()), example_generators(1, 0, 3)))
        own = [draw((3, 5), like, torch.Generator(DEVICE).manual_seed(7)) for _ in range(2)]
        assert own[0].device.type == like.device.type and torch.equal(*own)


def gradients(flow: FlowModel, device: str) -> tuple[Tensor, list[Tensor]]:
    """Loss of flow matching and its gradients, on the CPU."""
    flow.to(device)
    loss = (
        FlowMatching(LogitNormalTime())
        .forward(flow, latents(device), tokens=None, readout=None, generator=torch.Generator().manual_seed(0))
        .loss
    )
    slopes = torch.autograd.grad(loss, list(flow.parameters()))
    return loss.detach().cpu(), [slope.cpu() for slope in slopes]


def test_a_step_has_the_cpu_s_loss_and_gradients_and_under_bf16_finite_ones_close_to_them() -> None:
    loss, slopes = gradients(flow_of(), "cpu")
    on_gpu, same = gradients(flow_of(), DEVICE)
    torch.testing.assert_close(on_gpu, loss, rtol=1e-4, atol=0)
    for slope, other in zip(slopes, same, strict=True):
        assert float((slope - other).norm()) <= 5e-3 * float(slope.norm()) + 1e-6
    with torch.autocast(DEVICE, torch.bfloat16):
        half, rough = gradients(flow_of(), DEVICE)
    assert half.dtype == torch.float32 and half != on_gpu, "autocast was on"
    torch.testing.assert_close(half, loss, rtol=0.03, atol=0)
    assert all(slope.dtype == torch.float32 and bool(slope.isfinite().all()) for slope in rough)


def test_forward_derivatives_are_those_of_the_cpu_under_autocast_too_and_can_be_differentiated() -> None:
    results = []
    for device, is_autocast in (("cpu", False), (DEVICE, True)):
        flow, x = flow_of(two_times=True).to(device), latents(device)
        t = torch.linspace(0.1, 0.8, 8, device=device)

        def estimate(y: Tensor, time: Tensor, flow: FlowModel = flow, mask: Tensor = x.mask) -> Tensor:
            return flow.denoise(y, time, s=torch.ones_like(time), mask=mask)

        with torch.autocast(device, torch.bfloat16, enabled=is_autocast):
            value, change = estimate_and_change(flow, x.z, -x.z, t, torch.ones_like(t), x.mask)
            _, again = forward_derivative(estimate, (x.z, t), (-x.z, torch.ones_like(t)))
        slopes = torch.autograd.grad(again[x.mask].square().mean(), list(flow.parameters()), allow_unused=True)
        results.append([value.detach()[x.mask], change[x.mask], *(slope for slope in slopes if slope is not None)])
    here, there = results
    assert len(here) == len(there) > 10
    for one, other in zip(here, there, strict=True):
        assert float((one - other.cpu()).norm()) <= 5e-3 * float(one.norm()) + 1e-5


@pytest.mark.parametrize("stage", ["flow", "distribution_matching"])
def test_a_resumed_run_is_the_uninterrupted_one(workshop: Workshop, tmp_path: Path, stage: str) -> None:
    own = [f"--model.autoencoder={trained_flow(workshop)}", "--ema.decay=0.9", "--checkpoint.every_n_steps=3"]
    own += [f"--trainer.accelerator={'gpu' if DEVICE == 'cuda' else 'cpu'}", "--trainer.devices=1"]
    arguments = workshop.arguments(stage, *own, "--trainer.precision=bf16-mixed", steps=6)
    assert main([*arguments, f"--run_dir={tmp_path / 'whole'}"]) == 0
    half = tmp_path / "whole" / "checkpoints" / "previous.ckpt"
    assert load_checkpoint(half)["global_step"] == 3
    assert main([*arguments, f"--run_dir={tmp_path / 'resumed'}", f"--ckpt_path={half}"]) == 0
    expected = {step: loss for step, loss in logged(tmp_path / "whole")["train/loss"].items() if step >= 3}
    resumed = logged(tmp_path / "resumed")["train/loss"]
    assert resumed == pytest.approx(expected, rel=1e-3) and len(resumed) == 3
    one, other = (load_checkpoint(tmp_path / run / "checkpoints" / "last.ckpt") for run in ("whole", "resumed"))
    for name, value in one["state_dict"].items():
        torch.testing.assert_close(other["state_dict"][name], value, rtol=1e-3, atol=1e-4)
