"""How cost grows with length, batch, steps, latents and vocabulary: fitted exponents beside those of theory.

    python benchmarks/growth.py
    python benchmarks/growth.py --only length,vocabulary --repeats 7

An axis is measured at sizes a factor of two apart, which take turns. Its exponent is the slope of log seconds over log
size, fitted in every turn: median, lowest and highest. Theory is the slope of the floating-point operations that torch
counts at the same sizes; for the number of steps and of latents it is 1. "Written" is the slope of the numbers that all
operations write: where little is multiplied, time follows that. "Last doubling" is the exponent between the two largest
sizes, where fixed costs weigh least, and "live memory" that of the peak of live tensors. A time above both by more than
its spread is a defect. Seconds are the processor's, one thread.
"""

import argparse
import math
import os
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from unittest import mock

import torch
from arguments import OneLineParser, at_least_one, comma_parts
from matmuls import Recorder, flops_of, seconds_of
from training_steps import Size, TrainingStep, seeded_start

from fewstep.cli.main import errors_to_exit_code
from fewstep.denoisers import FlowModel, RegressionDenoiser
from fewstep.diagnostics.boundary import normal_boundary
from fewstep.diagnostics.dabi import dabi
from fewstep.diagnostics.decoding import draw_positions
from fewstep.diagnostics.response import CATEGORICAL
from fewstep.errors import UserError
from fewstep.evaluation.columns import markdown_table
from fewstep.evaluation.scored_text import ScoredText
from fewstep.evaluation.sweep_measures import Measures, TrainText
from fewstep.lab.theory.latents import LatentPosterior
from fewstep.paths import linear_path
from fewstep.readouts import TransformerReadout, categorical
from fewstep.samplers import FlowSampler

Work = Callable[[], object]


@dataclass(frozen=True)
class Axis:
    """What is made larger: sizes, the work at a size, and the exponent of theory where operations do not give it."""

    sizes: tuple[int, ...]
    work: Callable[[int], Work]
    theory: float | None = None


def training(length: int, batch: int) -> Work:
    """A training step of the flow."""
    return TrainingStep("flow", Size(64, 1, 2, length=length, batch=batch), "fp32")


def sampling(num_steps: int) -> Work:
    """A batch of trajectories."""
    with seeded_start(0):
        flow = FlowModel(RegressionDenoiser(8, 32, width=64, depth=2, num_heads=2), linear_path(), "x1").eval()
    sampler, x_0, generator = FlowSampler(flow.path), torch.zeros(16, 32, 8), torch.Generator().manual_seed(0)

    @torch.no_grad()
    def sample() -> object:
        return sampler.sample(flow, x_0, num_steps=num_steps, generator=generator)

    return sample


def exact(num_latents: int) -> Work:
    """An estimate of the exact denoiser."""
    generator = torch.Generator().manual_seed(0)
    model = LatentPosterior(torch.randn(num_latents, 16, 8, generator=generator), 0.1, linear_path())
    x_t, t = torch.randn(16, 16, 8, generator=generator), torch.full((16,), 0.5)
    return lambda: model.denoise(x_t, t)


def reading(vocab_size: int) -> Work:
    """Loss and gradients of the parallel readout, whose logits pass the size at which they are taken in parts."""
    with seeded_start(0):
        readout = TransformerReadout(vocab_size, 8, width=64, depth=1, num_heads=2)
    generator = torch.Generator().manual_seed(0)
    z, mask = torch.randn(16, 128, 8, generator=generator), torch.ones(16, 128, dtype=torch.bool)
    ids = torch.randint(vocab_size, (16, 128), generator=generator)
    return lambda: readout.loss(z, ids, mask).mean().backward()


def reading_at_once(vocab_size: int) -> Work:
    """The same with all logits at once, whatever their number."""
    work = reading(vocab_size)

    def read() -> None:
        with mock.patch.object(categorical, "MAX_LOGITS", 2**40):
            work()

    return read


def diagnosing(num_examples: int) -> Work:
    """DABI of the parallel readout at one boundary an example."""
    with seeded_start(0):
        readout = TransformerReadout(256, 8, width=32, depth=1, num_heads=2)
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(num_examples, 32, 8, generator=generator)
    positions = draw_positions(num_examples, 32, 1, generator)

    def decode(x: torch.Tensor) -> torch.Tensor:
        return readout(x, torch.ones(x.shape[:2], dtype=torch.bool))

    def diagnose() -> object:
        points = normal_boundary(decode, z, positions)
        settings = {"radii": (0.01,), "num_isotropic": 2, "num_probes": 2}
        return dabi(decode, CATEGORICAL, points, rms=1.0, generator=generator, **settings)

    return diagnose


def evaluating(num_texts: int) -> Work:
    """Everything in a row of the evaluation but sampling and the scorer: copies, repetition, intervals."""
    generator = torch.Generator().manual_seed(0)
    stream = torch.randint(1000, (200_000,), generator=generator)
    ids = torch.randint(1000, (num_texts, 32), generator=generator)
    mask, nats = torch.ones_like(ids, dtype=torch.bool), torch.rand(num_texts, generator=generator).double()
    scores = ScoredText(nats * 32, torch.full_like(nats, 32), nats)
    measures = Measures(TrainText(stream, 32))
    measures.of_tokens(ids[:2], mask[:2])  # the train text is indexed once
    return lambda: (measures.of_tokens(ids, mask), measures.of_scores([scores], [0]))


AXES = {
    "length": Axis((64, 128, 256, 512, 1024), lambda length: training(length, 4)),
    "batch": Axis((4, 8, 16, 32, 64), lambda batch: training(64, batch)),
    "steps K": Axis((2, 4, 8, 16, 32), sampling, theory=1.0),
    "latents": Axis((4096, 8192, 16384, 32768), exact, theory=1.0),
    "vocabulary": Axis((4096, 8192, 16384, 32768, 65536), reading),
    "vocabulary at once": Axis((4096, 8192, 16384, 32768, 65536), reading_at_once),
    "examples of a diagnosis": Axis((16, 32, 64, 128), diagnosing, theory=1.0),
    "texts of an evaluation": Axis((256, 512, 1024, 2048, 4096), evaluating, theory=1.0),
}


def slope(sizes: Sequence[int], values: Sequence[float]) -> float:
    """Least-squares slope of log value over log size."""
    x, y = ([math.log(one) for one in column] for column in (sizes, values))
    return statistics.linear_regression(x, y).slope


def recorded(work: Work) -> Recorder:
    """What operations write, and hold at once."""
    with Recorder() as recorder:
        work()
    return recorder


def measured(name: str, axis: Axis, repeats: int) -> tuple[str, ...]:
    """A line of the table."""
    works = [axis.work(size) for size in axis.sizes]
    for work in works:
        work()
    theory = axis.theory if axis.theory is not None else slope(axis.sizes, [flops_of(work) for work in works])
    records = [recorded(work) for work in works]
    memory = slope(axis.sizes, [record.peak_bytes for record in records])
    written = slope(axis.sizes, [record.written for record in records])
    turns = []
    for repeat in range(repeats):
        order = works if repeat % 2 == 0 else works[::-1]
        spent = {work: seconds_of(work) for work in order}
        turns.append([spent[work] for work in works])
    found = sorted(slope(axis.sizes, turn) for turn in turns)
    steepest = sorted(math.log2(turn[-1] / turn[-2]) for turn in turns)
    return (
        *(name, f"{axis.sizes[0]:,} - {axis.sizes[-1]:,}", f"{theory:.2f}", f"{written:.2f}"),
        *(
            f"{statistics.median(found):.2f}",
            f"{found[0]:.2f} - {found[-1]:.2f}",
            f"{statistics.median(steepest):.2f}",
            f"{memory:.2f}",
        ),
    )


def command(argv: list[str]) -> int:
    """Measure every axis, and print a table."""
    parser = OneLineParser("growth.py", __doc__.split("\n", 1)[0])
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--only", default=",".join(AXES), help="axes with commas between")
    parser.add_argument("--repeats", type=at_least_one, default=5)
    args = parser.parse_args(argv)
    names = comma_parts(args.only, "only")
    if unknown := [name for name in names if name not in AXES]:
        raise UserError(f"--only {unknown[0]!r}: expected of {', '.join(AXES)}")
    torch.set_num_threads(1)
    load = os.getloadavg()
    heading = ("axis", "sizes", "theory", "written", "time", "lowest - highest", "last doubling", "live memory")
    lines = [heading, *(measured(name, AXES[name], args.repeats) for name in names)]
    caption = (
        f"Exponents; {args.repeats} turns, one thread, torch {torch.__version__}, load average {load[0]:.1f} before "
        f"and {os.getloadavg()[0]:.1f} after."
    )
    print(markdown_table(lines, caption))
    return 0


if __name__ == "__main__":
    sys.exit(errors_to_exit_code(command, sys.argv[1:]))
