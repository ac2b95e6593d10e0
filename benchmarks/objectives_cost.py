"""What a training step of each objective costs against one of flow matching, on the quickstart's denoiser.

    python benchmarks/objectives_cost.py                      # time and memory, on the processor
    python benchmarks/objectives_cost.py --device cuda
    python benchmarks/objectives_cost.py --only mean_flow,shortcut --repeats 5

Time: forward, backward and optimizer step, all objectives in turn in every round, so that a machine which does other
things slows all of them alike; the ratio to flow matching is taken within a round, and shown as its median with the
lowest and highest round. Memory: on a GPU the peak of what torch allocates; on the processor the peak resident size of
a process of its own, less what it had before the first step. Times a step are those of float32 training.
"""

import argparse
import multiprocessing
import resource
import statistics
import sys
import time
from collections.abc import Callable

import torch

from fewstep.denoisers import FlowModel, RegressionDenoiser
from fewstep.evaluation.columns import markdown_table
from fewstep.lab.compare.command import settings_of
from fewstep.lab.compare.comparison import FLOW, objective_of
from fewstep.objectives import OBJECTIVES, Objective
from fewstep.paths import linear_path
from fewstep.settings import configs_folder
from fewstep.types import Latents

LATENT_DIM, POSITIONS, BATCH_SIZE = 8, 32, 32


def objective_named(name: str) -> Objective:
    """With the arguments of its shipped settings."""
    return objective_of(configs_folder() / "flow.yaml", settings_of(name), {})


def flow_model(two_times: bool, device: str) -> FlowModel:
    """The quickstart's denoiser on the linear path, with weights that are not those of initialisation."""
    network = RegressionDenoiser(
        LATENT_DIM, POSITIONS, width=192, depth=5, num_heads=3, two_times=two_times, max_frequency=10
    )
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
    return FlowModel(network.to(device), linear_path(), "x1")


def step_of(objective: Objective, device: str) -> Callable[[], None]:
    """A function that makes one training step."""
    model = flow_model(objective.estimate.two_times, device)
    teacher = flow_model(False, device).requires_grad_(False).eval() if objective.needs_teacher else None
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(BATCH_SIZE, POSITIONS, LATENT_DIM, generator=generator).to(device)
    latents = Latents(z, torch.ones(z.shape[:2], dtype=torch.bool, device=device))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)

    def step() -> None:
        output = objective.forward(
            model, latents, tokens=None, readout=None, generator=generator, teacher=teacher, progress=0.5
        )
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
        if device == "cuda":
            torch.cuda.synchronize()

    return step


def peak_rss() -> float:
    """Largest resident size of this process so far, MiB; Linux counts in KiB, macOS in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def memory_mib(name: str, device: str, steps: int) -> float:
    """Peak of ``steps`` steps, MiB."""
    objective = objective_named(name)
    if device == "cuda":
        step = step_of(objective, device)
        torch.cuda.reset_peak_memory_stats()
        for _ in range(steps):
            step()
        return torch.cuda.max_memory_allocated() / 2**20
    before = peak_rss()
    step = step_of(objective, device)
    for _ in range(steps):
        step()
    return peak_rss() - before


def memory_in_a_process(name: str, device: str, steps: int) -> float:
    """The same in a fresh process, whose peak no other objective has raised."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(memory_mib, (name, device, steps))


def seconds_by_round(names: list[str], device: str, rounds: int, repeats: int) -> dict[str, list[float]]:
    """Seconds a step of each objective in each round, all of them in turn."""
    steps = {name: step_of(objective_named(name), device) for name in names}
    for step in steps.values():
        step()
    found: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(rounds):
        for name, step in steps.items():
            start = time.perf_counter()
            for _ in range(repeats):
                step()
            found[name].append((time.perf_counter() - start) / repeats)
    return found


def main() -> None:
    """Measure, and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(OBJECTIVES), help="comma-separated objectives")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--repeats", type=int, default=3, help="steps of an objective in a round")
    args = parser.parse_args()
    names = list(dict.fromkeys([FLOW, *args.only.split(",")]))
    memory = {name: memory_in_a_process(name, args.device, args.repeats) for name in names}
    seconds = seconds_by_round(names, args.device, args.rounds, args.repeats)
    lines = [("objective", "passes", "ms a step", "time / flow", "lowest - highest", "MiB", "memory / flow")]
    for name in names:
        ratios = [own / flow for own, flow in zip(seconds[name], seconds[FLOW], strict=True)]
        lines.append(
            (
                name,
                f"{objective_named(name).passes_per_step:.3g}",
                f"{1000 * statistics.median(seconds[name]):.0f}",
                f"{statistics.median(ratios):.2f}",
                f"{min(ratios):.2f} - {max(ratios):.2f}",
                f"{memory[name]:.0f}",
                f"{memory[name] / memory[FLOW]:.2f}",
            )
        )
    caption = (
        f"Batch {BATCH_SIZE} of {POSITIONS} x {LATENT_DIM} on {args.device}, {torch.get_num_threads()} threads; "
        f"median, lowest and highest of {args.rounds} rounds of {args.repeats} steps."
    )
    print(markdown_table(lines, caption))


if __name__ == "__main__":
    main()
