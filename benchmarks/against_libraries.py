"""Our training step against torchcfm's, and our Euler sampling against diffusers' scheduler loop, on one network.

    pip install --no-deps --target FOLDER torchcfm POT
    PYTHONPATH=FOLDER python benchmarks/against_libraries.py

Both sides of a row use the same denoiser and optimizer settings and do the same: the velocity's squared error on
the linear path, and the end of the same Euler steps. They take turns, the first of them changing; ratios are taken
within a turn. Seconds are the processor's, one thread. Without torchcfm its row is left out, with a line that says so.
"""

import argparse
import os
import statistics
import sys
from collections.abc import Callable

import torch
from arguments import OneLineParser, at_least_one
from diffusers import FlowMatchEulerDiscreteScheduler
from matmuls import seconds_of
from torch import Tensor
from training_steps import seeded_start

from fewstep.cli.main import errors_to_exit_code
from fewstep.denoisers import FlowModel, RegressionDenoiser
from fewstep.evaluation.columns import markdown_table
from fewstep.objectives import FlowMatching
from fewstep.paths import linear_path
from fewstep.samplers import FlowSampler
from fewstep.schedules import UniformGrid, UniformTime
from fewstep.training import OptimizerSettings
from fewstep.types import Latents

Work = Callable[[], object]
BATCH, LENGTH, LATENT_DIM = 32, 32, 8


def flow_of(width: int) -> FlowModel:
    """The same weights whenever it is called."""
    with seeded_start(0):
        network = RegressionDenoiser(LATENT_DIM, LENGTH, width=width, depth=5, num_heads=3)
        torch.nn.init.normal_(network.outputs.weight, std=0.1)
    return FlowModel(network, linear_path(), "velocity")


def stepping(flow: FlowModel, loss: Callable[[], Tensor]) -> Work:
    """A training step of ``loss``."""
    optimizer, schedule = OptimizerSettings().build(flow.parameters(), 1000)

    def step() -> None:
        optimizer.zero_grad()
        loss().backward()
        torch.nn.utils.clip_grad_norm_(flow.parameters(), 1.0)
        optimizer.step()
        schedule.step()

    return step


def our_training(width: int, x_1: Tensor) -> Work:
    """Flow matching as ``fewstep train`` does it."""
    flow, objective, generator = flow_of(width), FlowMatching(UniformTime()), torch.Generator().manual_seed(0)
    latents = Latents(x_1, torch.ones(x_1.shape[:2], dtype=torch.bool))
    return stepping(flow, lambda: objective.forward(flow, latents, tokens=None, readout=None, generator=generator).loss)


def their_training(width: int, x_1: Tensor) -> Work | None:
    """torchcfm's matcher of the same path with its usual loss; None where it is not installed."""
    try:
        from torchcfm import ConditionalFlowMatcher
    except ImportError as error:
        print(f"torchcfm is left out: {error}", file=sys.stderr)
        return None
    flow, matcher = flow_of(width), ConditionalFlowMatcher(sigma=0.0)

    def loss() -> Tensor:
        t, x_t, velocity = matcher.sample_location_and_conditional_flow(torch.randn_like(x_1), x_1)
        return (flow.network(x_t, t).value - velocity).square().mean()

    return stepping(flow, loss)


def our_sampling(flow: FlowModel, x_0: Tensor, num_steps: int) -> Callable[[], Tensor]:
    """The end of the trajectory by the project's sampler."""
    sampler, generator = FlowSampler(flow.path, grid=UniformGrid()), torch.Generator().manual_seed(0)

    @torch.no_grad()
    def end() -> Tensor:
        for state in sampler.iterate(flow, x_0, num_steps=num_steps, generator=generator):
            last = state.x_t
        return last

    return end


def their_sampling(flow: FlowModel, x_0: Tensor, num_steps: int) -> Callable[[], Tensor]:
    """The same by diffusers, whose time is sigma = 1 - t and whose velocity points to the noise."""

    @torch.no_grad()
    def end() -> Tensor:
        scheduler = FlowMatchEulerDiscreteScheduler()
        scheduler.set_timesteps(sigmas=(1 - UniformGrid().times(num_steps)[:-1]).tolist())
        x = x_0
        for k, timestep in enumerate(scheduler.timesteps):
            t = (1 - scheduler.sigmas[k]).expand(len(x))
            x = scheduler.step(-flow.network(x, t).value, timestep, x, return_dict=False)[0]
        return x

    return end


def compared(name: str, ours: Work, theirs: Work, repeats: int) -> tuple[str, ...]:
    """A line of the table: medians, and the ratio's median, lowest and highest."""
    ours(), theirs()
    turns = []
    for repeat in range(repeats):
        order = (ours, theirs) if repeat % 2 == 0 else (theirs, ours)
        spent = {work: seconds_of(work) for work in order}
        turns.append((spent[ours], spent[theirs]))
    ratios = sorted(one / other for one, other in turns)
    milliseconds = [f"{1e3 * statistics.median(column):.1f}" for column in zip(*turns, strict=True)]
    return name, *milliseconds, f"{statistics.median(ratios):.2f}", f"{ratios[0]:.2f} - {ratios[-1]:.2f}"


def command(argv: list[str]) -> int:
    """Compare, and print a table."""
    parser = OneLineParser("against_libraries.py", __doc__.split("\n", 1)[0])
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--width", type=at_least_one, default=192)
    parser.add_argument("--repeats", type=at_least_one, default=15)
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    load, generator = os.getloadavg(), torch.Generator().manual_seed(0)
    x = torch.randn(BATCH, LENGTH, LATENT_DIM, generator=generator)
    lines = [("what", "ours ms", "theirs ms", "ours / theirs", "lowest - highest")]
    if (theirs := their_training(args.width, x)) is not None:
        lines.append(compared("training step, torchcfm", our_training(args.width, x), theirs, args.repeats))
    flow = flow_of(args.width).eval()
    for num_steps in (4, 16):
        ours, other = our_sampling(flow, x, num_steps), their_sampling(flow, x, num_steps)
        torch.testing.assert_close(ours(), other(), rtol=1e-3, atol=1e-4)
        lines.append(compared(f"{num_steps} Euler steps, diffusers", ours, other, args.repeats))
    caption = (
        f"Batch {BATCH} of {LENGTH} x {LATENT_DIM}, float32, one thread, {args.repeats} turns, load average "
        f"{load[0]:.1f} before and {os.getloadavg()[0]:.1f} after."
    )
    print(markdown_table(lines, caption))
    return 0


if __name__ == "__main__":
    sys.exit(errors_to_exit_code(command, sys.argv[1:]))
