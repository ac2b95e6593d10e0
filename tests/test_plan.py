"""The planning page's model against what is counted and measured on small networks."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import plan as planning
from fewstep.denoisers import RegressionDenoiser
from fewstep.training.optimizer import OptimizerSettings

MACHINE = planning.Machine(1000.0, 0.5, 80.0, 0.1, 40.0, 20.0)
SHAPES = [(64, 2, 96, 3), (128, 3, 32, 2)]


def network_of(width: int, depth: int, positions: int) -> RegressionDenoiser:
    return RegressionDenoiser(planning.LATENT_DIM, positions, width=width, depth=depth, num_heads=2)


@pytest.mark.parametrize(("width", "depth", "positions", "batch"), SHAPES)
def test_parameters_and_the_bytes_of_their_state_are_exact(width: int, depth: int, positions: int, batch: int) -> None:
    network = network_of(width, depth, positions)
    count = sum(parameter.numel() for parameter in network.parameters())
    assert planning.num_parameters(width, depth, positions) == count
    optimizer, _ = OptimizerSettings().build(network.parameters(), 10)
    averaged = torch.optim.swa_utils.AveragedModel(network)
    network(torch.randn(batch, positions, planning.LATENT_DIM), torch.rand(batch)).value.square().mean().backward()
    optimizer.step()
    parameters = list(network.parameters())
    held = [*parameters, *averaged.module.parameters(), *(p.grad for p in parameters if p.grad is not None)]
    held += [moment for state in optimizer.state.values() for moment in state.values() if moment.ndim]
    assert planning.STATE_BYTES * count == sum(tensor.nbytes for tensor in held)


@pytest.mark.parametrize(("width", "depth", "positions", "batch"), SHAPES)
def test_operations_are_those_that_torch_counts(width: int, depth: int, positions: int, batch: int) -> None:
    network = network_of(width, depth, positions)
    x, t = torch.randn(batch, positions, planning.LATENT_DIM), torch.rand(batch)
    kernels = torch.nn.attention.SDPBackend.MATH  # those of attention that torch counts wherever it runs
    with FlopCounterMode(display=False) as counter, torch.nn.attention.sdpa_kernel(kernels):
        network(x.requires_grad_(), t).value.square().mean().backward()
    # The first layer of time's embedding asks for no gradient of its input.
    unneeded = 2 * batch * planning.FEATURES * width
    assert counter.get_total_flops() == planning.step_flops(width, depth, positions, batch) - unneeded


def test_activations_grow_as_the_model_says() -> None:
    constant = planning.measured_activations()
    assert constant == pytest.approx(planning.measured_activations(width=128, positions=512, batch=3), rel=0.02)
    machine = planning.Machine(1000.0, 0.5, 80.0, 0.1, 40.0, constant)
    width, depth, positions, batch = 96, 4, 256, 4
    network, size = network_of(width, depth, positions), planning.Size("tiny", width, depth)
    x, t = torch.randn(batch, positions, planning.LATENT_DIM), torch.rand(batch)
    more, fewer = (planning.saved_bytes(network, x[:rows], t[:rows], torch.bfloat16) for rows in (batch, 1))
    predicted = planning.activation_bytes(size, positions, batch - 1, machine, recompute=False)
    assert more - fewer == pytest.approx(predicted, rel=0.15), "the rest is the ends of the network"


def test_what_is_planned_fits_and_more_machines_are_slower_by_what_they_send_at_most() -> None:
    rows = list(planning.plans(MACHINE, 2**19, 20.0))
    assert len(rows) == len(planning.SIZES) * len(planning.LENGTHS) * len(planning.GPUS)
    for row in rows:
        if row.batch:
            assert (row.state_gib + row.activations_gib) * planning.GIB <= MACHINE.room
            assert row.gpus * row.batch * row.accumulate * row.length >= 2**19
    days = {(row.size, row.length, row.gpus): row.days for row in rows if row.batch}
    for (size, length, gpus), value in days.items():
        for more in (other for other in planning.GPUS if other > gpus):
            growth = 1 if gpus == 1 else (1 - 1 / more) / (1 - 1 / gpus)
            assert days[size, length, more] <= value * growth * 1.001
    assert not any(row.batch for row in rows if row.size == "7B"), "20 bytes a parameter are more than a GPU has"


def test_time_is_that_of_the_longer_of_computing_and_sending() -> None:
    size, length, gpus = planning.Size("one", 640, 12), 1024, 8
    slow = planning.Machine(1000.0, 0.5, 80.0, 0.1, 0.01, 20.0)
    near, far = (planning.plan(size, length, gpus, machine, 2**19, 20.0) for machine in (MACHINE, slow))
    assert near.sending_share < 1 < far.sending_share
    positions = gpus * near.batch * near.accumulate * length
    flops = near.accumulate * planning.step_flops(640, 12, length, near.batch)
    assert near.positions_per_second == pytest.approx(positions / (flops / 5e14))
    sent = 2 * 7 / 8 * 4 * near.parameters / 1e7
    assert far.positions_per_second == pytest.approx(positions / sent)
