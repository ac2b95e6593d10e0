"""Few-step generation against an autoregressive baseline of equal parameters with KV cache, in tokens per second.

    python benchmarks/generation_speed.py --model runs/quickstart/model
    python benchmarks/generation_speed.py --model runs/quickstart/model --repeats 21 --threads 2 --out runs/speed.json

Ways: the parallel readout at K steps, the commitment head at 4, the run's own language model, and a causal transformer
without latents whose parameters are those of denoiser and readout together, within 5 % (the parallel readout's own; the
commitment head has more, and the table says so). Its weights are random, on which the time does not depend: every
token of a block is computed, none ends it. Timed is the way from noise to ids, one block a sample, at batch 1 and 16.

All ways take turns within each repeat, and the turns run backwards in every second one, so that a busy machine hits all
alike; medians with 10 to 90 % of the repeats. The last column is the ratio to the baseline in the same repeat.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from arguments import OneLineParser, at_least_one
from torch import nn

from fewstep.cli.main import errors_to_exit_code
from fewstep.cli.output import new_text_file
from fewstep.errors import UserError
from fewstep.evaluation.columns import aligned_columns
from fewstep.model import SavedModel
from fewstep.pipeline import TextGenerator
from fewstep.readouts import CausalTransformer, LanguageModel
from fewstep.shapes import example_generators

BATCHES = (1, 16)
PARALLEL_STEPS = (1, 2, 4, 8, 16, 32)
COMMIT_STEPS = 4
TOLERANCE = 0.05
BASELINE = "autoregressive, equal parameters"
COLUMNS = (
    "way",
    "K",
    "passes",
    "parameters",
    "batch",
    "tokens/s",
    "10 - 90 %",
    "ms a batch",
    "x baseline",
    "10 - 90 %",
)


@dataclass(frozen=True)
class Way:
    """One way to make text. ``num_steps`` K of the flow, None without one; ``passes`` network forwards a sample;
    ``parameters`` of all networks that take part. ``make`` takes a batch size and a seed, returns tokens and seconds.
    """

    name: str
    num_steps: int | None
    passes: int
    parameters: int
    make: Callable[[int, int], tuple[int, float]]


@dataclass(frozen=True)
class Spread:
    """Median, 10 and 90 % quantiles of the repeats."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """Of one value a repeat."""
        low, median, high = torch.tensor(values, dtype=torch.float64).quantile(
            torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
        )
        return cls(float(median), float(low), float(high))


@dataclass(frozen=True)
class Row:
    """One way at one batch size. ``tokens`` made in each repeat, ``seconds`` and ``tokens_per_second`` one a repeat;
    ``times_baseline`` the ratio of the baseline's seconds to these in the same repeat.
    """

    name: str
    num_steps: int | None
    passes: int
    parameters: int
    batch_size: int
    tokens: int
    seconds: tuple[float, ...]
    tokens_per_second: tuple[float, ...]
    rate: Spread
    times_baseline: Spread

    def cells(self) -> tuple[str, ...]:
        """The row as strings, one for each of ``COLUMNS``."""
        steps, ratio = "" if self.num_steps is None else str(self.num_steps), self.times_baseline
        return (
            self.name,
            steps,
            str(self.passes),
            f"{self.parameters:,}",
            str(self.batch_size),
            f"{self.rate.median:,.0f}",
            f"{self.rate.low:,.0f} - {self.rate.high:,.0f}",
            f"{1e3 * Spread.of(self.seconds).median:.1f}",
            f"{ratio.median:.2f}",
            f"{ratio.low:.2f} - {ratio.high:.2f}",
        )


def parameter_count(*modules: nn.Module) -> int:
    """Number of weights of all ``modules``."""
    return sum(parameter.numel() for module in modules for parameter in module.parameters())


def causal_count(vocab_size: int, width: int, depth: int) -> int:
    """Number of weights of a :class:`CausalTransformer` without latents: embedding, output, blocks, norms."""
    block = 12 * width * width + 9 * width
    return (2 * vocab_size + 1) * width + depth * block + 2 * width


def matched_baseline(target: int, vocab_size: int, depth: int) -> CausalTransformer:
    """A causal transformer, random weights, of ``target`` parameters within 5 %.

    Of all that fit: a width that suits the processor (a multiple of 64, else of 16, else even), then the nearest to
    ``depth``, then the nearest count. Heads have 64 dimensions, or where the width does not divide, more. Raises
    ``UserError`` if none fits.
    """
    found = []
    for layers in range(1, 3 * depth + 1):
        width = 2
        while (count := causal_count(vocab_size, width, layers)) <= (1 + TOLERANCE) * target:
            if count >= (1 - TOLERANCE) * target:
                odd = 0 if width % 64 == 0 else 1 if width % 16 == 0 else 2
                found.append((odd, abs(layers - depth), abs(count - target), width, layers))
            width += 2
    if not found:
        raise UserError(
            f"no causal transformer of {target} parameters within 5 % has {vocab_size} tokens: use another model"
        )
    *_, width, layers = min(found)
    heads = next(heads for heads in range(max(1, width // 64), 0, -1) if width % (2 * heads) == 0)
    return CausalTransformer(vocab_size, width=width, depth=layers, num_heads=heads)


def flow_way(generator: TextGenerator, readout: str, num_steps: int) -> Way:
    """Flow of ``num_steps`` and a readout, "parallel" or "head"."""
    bundle = generator.model
    reader, passes = (
        (bundle.reader(), 1) if readout == "parallel" else (bundle.commitment_head(), bundle.identity.block_size)
    )
    assert bundle.denoiser is not None

    def make(batch_size: int, seed: int) -> tuple[int, float]:
        made = generator.generate(batch_size, num_steps, seed, readout=readout, batch_size=batch_size)
        return made.ids.numel(), made.seconds

    name = "parallel readout" if readout == "parallel" else "commitment head"
    return Way(name, num_steps, num_steps + passes, parameter_count(bundle.denoiser, reader), make)


def language_way(name: str, model: LanguageModel, block_size: int) -> Way:
    """Token by token at temperature 1 with a KV cache."""
    model.eval()

    def make(batch_size: int, seed: int) -> tuple[int, float]:
        start = time.perf_counter()
        made = model.generate(batch_size, block_size, generator=example_generators(seed, 0, batch_size))
        return made.ids.numel(), time.perf_counter() - start

    return Way(name, None, block_size, parameter_count(model), make)


def all_ways(bundle: SavedModel, steps: Sequence[int]) -> tuple[list[Way], CausalTransformer]:
    """Every way of the table, and the baseline's network. Raises ``UserError`` where the model lacks a part."""
    bundle.require("autoencoder", "denoiser", "readout", "head", "language_model")
    denoiser, generator = bundle.denoiser, TextGenerator(bundle)
    assert denoiser is not None
    config: dict[str, Any] = denoiser.config  # type: ignore[assignment]
    target = parameter_count(denoiser, bundle.reader())
    baseline = matched_baseline(target, len(bundle.tokenizer), config["depth"])
    length = bundle.identity.block_size
    ways = [flow_way(generator, "parallel", num_steps) for num_steps in steps]
    ways += [flow_way(generator, "head", COMMIT_STEPS)]
    ways += [language_way("the run's language model", bundle.scorer(), length)]
    ways += [language_way(BASELINE, LanguageModel(baseline), length)]
    return ways, baseline


def measure(ways: Sequence[Way], batches: Sequence[int], repeats: int) -> list[Row]:
    """Rows of all ``ways``, the last of which is the baseline, at all batch sizes, after one warm-up of each."""
    turns = [(way, batch) for batch in batches for way in ways]
    seconds: list[list[float]] = [[] for _ in turns]
    tokens = [way.make(batch, 0)[0] for way, batch in turns]
    for repeat in range(repeats):
        order = range(len(turns)) if repeat % 2 == 0 else range(len(turns) - 1, -1, -1)
        for number in order:
            way, batch = turns[number]
            made, spent = way.make(batch, repeat + 1)
            if made != tokens[number]:
                raise RuntimeError(f"{way.name} made {made} tokens, before {tokens[number]}: times would not compare")
            seconds[number].append(spent)
    rows = []
    for number, (way, batch) in enumerate(turns):
        baseline = seconds[turns.index((ways[-1], batch))]
        rates = tuple(tokens[number] / one for one in seconds[number])
        ratios = [theirs / ours for theirs, ours in zip(baseline, seconds[number], strict=True)]
        row = Row(
            *(way.name, way.num_steps, way.passes, way.parameters, batch, tokens[number]),
            *(tuple(seconds[number]), rates, Spread.of(rates), Spread.of(ratios)),
        )
        rows.append(row)
    return rows


def command(argv: list[str]) -> int:
    """Measure what the command line asks for, print the table, and write JSON where asked."""
    parser = OneLineParser("generation_speed.py", __doc__.split("\n", 1)[0])
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--model", type=Path, default=Path("runs/quickstart/model"))
    parser.add_argument("--repeats", type=at_least_one, default=15)
    parser.add_argument("--threads", type=at_least_one, default=1, help="torch.set_num_threads")
    parser.add_argument("--out", type=Path, help="write everything there as JSON")
    parser.add_argument("--overwrite", action="store_true", help="replace the file of --out")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    generator = TextGenerator.from_pretrained(args.model)
    ways, baseline = all_ways(generator.model, PARALLEL_STEPS)
    file = nullcontext(None) if args.out is None else new_text_file(args.out, overwrite=args.overwrite)
    with file as write:
        before = os.getloadavg()
        rows = measure(ways, BATCHES, args.repeats)
        facts = {
            "model": str(args.model),
            "block_size": generator.model.identity.block_size,
            "repeats": args.repeats,
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "processors": os.cpu_count(),
            "load_before": before,
            "load_after": os.getloadavg(),
            "denoiser_and_readout_parameters": ways[0].parameters,
            "baseline_parameters": ways[-1].parameters,
            "baseline": baseline.config,
        }
        if write is not None:
            write([json.dumps({**facts, "rows": [asdict(row) for row in rows]}, indent=2) + "\n"])
    print(aligned_columns([COLUMNS, *(row.cells() for row in rows)], (0,)))
    print(described(facts))
    return 0


def described(facts: dict[str, Any]) -> str:
    """What the numbers were measured with and on, in a few lines."""
    ours, theirs, config = facts["denoiser_and_readout_parameters"], facts["baseline_parameters"], facts["baseline"]
    return (
        f"{facts['model']}: blocks of {facts['block_size']} tokens, {facts['repeats']} repeats, all ways by turns\n"
        f"denoiser and readout {ours:,} parameters; baseline {theirs:,} ({theirs / ours - 1:+.1%}): width "
        f"{config['width']}, depth {config['depth']}, {config['num_heads']} heads, random weights (speed is the same)\n"
        f"torch {facts['torch']}, torch.set_num_threads({facts['threads']}), {facts['processors']} processors, load "
        f"average {facts['load_before'][0]:.2f} before and {facts['load_after'][0]:.2f} after"
    )


if __name__ == "__main__":
    sys.exit(errors_to_exit_code(command, sys.argv[1:]))
