"""What sampling costs beside its network evaluations, and tokens a second against transformers' GPT-2 with KV cache.

    python benchmarks/sampling_speed.py
    python benchmarks/sampling_speed.py --batches 16 --steps 4 --repeats 9 --out runs/speed/sampling.json

Networks are those of the shipped settings at blocks of --length tokens, with random weights, on which the time does not
depend; GPT-2 has the parameters of denoiser and parallel readout together, within 5 %, and writes as many tokens by
sampling, none of which ends a text. For a real model, and the project's own autoregressive baseline, see
generation_speed.py. "floor" is K plain calls of the denoiser and one of the readout, on tensors that are at hand.

All ways take turns within a repeat, backwards in every second one; ratios are taken within a repeat. Seconds are the
processor's, one thread: a busy machine does not steal them.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path

import torch
from arguments import OneLineParser, at_least_one, comma_parts
from generation_speed import COLUMNS, Spread, Way, measure, parameter_count
from torch import Tensor
from training_steps import seeded_start
from transformers import GPT2Config, GPT2LMHeadModel

from fewstep.cli.main import errors_to_exit_code
from fewstep.cli.output import new_text_file
from fewstep.denoisers import FlowModel, RegressionDenoiser
from fewstep.errors import UserError
from fewstep.evaluation.columns import markdown_table
from fewstep.paths import linear_path
from fewstep.readouts import CausalTransformer, CommitmentHead, TransformerReadout
from fewstep.samplers import FlowSampler
from fewstep.schedules import UniformGrid
from fewstep.shapes import example_generators, randn

VOCAB_SIZE, LATENT_DIM, TOLERANCE = 2048, 8, 0.05


class Networks:
    """Denoiser, parallel readout and commitment head of the shipped settings, for blocks of ``length`` tokens."""

    def __init__(self, length: int) -> None:
        self.length = length
        with seeded_start(0):
            denoiser = RegressionDenoiser(LATENT_DIM, length, width=192, depth=5, num_heads=3)
            self.readout = TransformerReadout(VOCAB_SIZE, LATENT_DIM, width=128, depth=2, num_heads=4).eval()
            self.causal = CausalTransformer(VOCAB_SIZE, latent_dim=LATENT_DIM, width=192, depth=4, num_heads=3).eval()
        self.flow = FlowModel(denoiser, linear_path(), "x1").eval()
        self.sampler = FlowSampler(self.flow.path, grid=UniformGrid())

    def latents(self, batch: int, num_steps: int, seed: int) -> tuple[Tensor, Tensor]:
        """x_1 (B, K, D) after ``num_steps`` Euler steps, and a mask (B, K) that is true everywhere."""
        generators = example_generators(seed, 0, batch)
        like = torch.zeros(())
        x_0 = randn((batch, self.length, LATENT_DIM), like, generators)
        mask = torch.ones(batch, self.length, dtype=torch.bool)
        for state in self.sampler.iterate(self.flow, x_0, num_steps=num_steps, mask=mask, generator=generators):
            last = state.x_t
        return last, mask

    def parallel(self, batch: int, num_steps: int, seed: int) -> int:
        """Write a batch with the parallel readout; number of tokens."""
        z, mask = self.latents(batch, num_steps, seed)
        return self.readout.generate(z, mask, generator=example_generators(seed, batch, batch)).ids.numel()

    def committed(self, batch: int, num_steps: int, seed: int) -> int:
        """Write a batch with the commitment head; number of tokens."""
        z, mask = self.latents(batch, num_steps, seed)
        head = CommitmentHead(self.causal)
        return head.generate(z, mask, generator=example_generators(seed, batch, batch)).ids.numel()

    def floor(self, batch: int, num_steps: int) -> int:
        """K calls of the denoiser and one of the readout; number of tokens."""
        x, t = torch.zeros(batch, self.length, LATENT_DIM), torch.full((batch,), 0.5)
        mask = torch.ones(batch, self.length, dtype=torch.bool)
        for _ in range(num_steps):
            z = self.flow.denoise(x, t, mask=mask)
        return self.readout(z, mask).argmax(-1).numel()


def matched_gpt2(target: int, length: int) -> GPT2LMHeadModel:
    """GPT-2 of ``target`` parameters within 5 %, its width a multiple of 64. Raises ``UserError`` if none fits."""
    found = []
    for layers in range(2, 13):
        for width in range(64, 1025, 64):
            count = (VOCAB_SIZE + length + 1) * width + layers * (12 * width**2 + 13 * width) + 2 * width
            found.append((abs(count / target - 1), layers, width))
    apart, layers, width = min(found)
    if apart > TOLERANCE:
        raise UserError(f"no GPT-2 has {target} parameters within 5 %: the nearest is {apart:.0%} off")
    config = GPT2Config(
        vocab_size=VOCAB_SIZE, n_positions=length + 1, n_embd=width, n_layer=layers, n_head=width // 64,
        bos_token_id=0, eos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    with seeded_start(0):
        return GPT2LMHeadModel(config).eval()


def timed(make: Callable[[int, int], int]) -> Callable[[int, int], tuple[int, float]]:
    """The same with the processor's seconds."""

    def made(batch: int, seed: int) -> tuple[int, float]:
        start = time.process_time()
        with torch.no_grad():
            tokens = make(batch, seed)
        return tokens, time.process_time() - start

    return made


def all_ways(networks: Networks, steps: list[int]) -> list[Way]:
    """Every way of the table, GPT-2 last."""
    length, flow, readout = networks.length, networks.flow.network, networks.readout
    both = parameter_count(flow, readout)
    gpt2 = matched_gpt2(both, length)
    ways = []
    for k in steps:
        ways.append(Way("floor", k, k + 1, both, timed(lambda b, seed, k=k: networks.floor(b, k))))
        ways.append(Way("parallel readout", k, k + 1, both, timed(lambda b, seed, k=k: networks.parallel(b, k, seed))))
    for k in steps:
        count = parameter_count(flow, networks.causal)
        make = timed(lambda b, seed, k=k: networks.committed(b, k, seed))
        ways.append(Way("commitment head", k, k + length, count, make))

    def written(batch: int, seed: int) -> int:
        start = torch.zeros(batch, 1, dtype=torch.long)
        with seeded_start(seed):
            ids = gpt2.generate(
                start, attention_mask=torch.ones_like(start), do_sample=True, top_k=0, use_cache=True,
                max_new_tokens=length, min_new_tokens=length,
            )  # fmt: skip
        return ids[:, 1:].numel()

    return [*ways, Way("GPT-2 with KV cache", None, length, parameter_count(gpt2), timed(written))]


def command(argv: list[str]) -> int:
    """Measure what the command line asks for, print the tables, and write JSON where asked."""
    parser = OneLineParser("sampling_speed.py", __doc__.split("\n", 1)[0])
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--steps", default="1,4,16", help="K with commas between")
    parser.add_argument("--batches", default="1,16,64")
    parser.add_argument("--length", type=at_least_one, default=128)
    parser.add_argument("--repeats", type=at_least_one, default=5)
    parser.add_argument("--out", type=Path, help="write everything there as JSON")
    parser.add_argument("--overwrite", action="store_true", help="replace the file of --out")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    steps = [at_least_one(part) for part in comma_parts(args.steps, "steps")]
    batches = [at_least_one(part) for part in comma_parts(args.batches, "batches")]
    file = nullcontext(None) if args.out is None else new_text_file(args.out, overwrite=args.overwrite)
    with file as write:
        load, rows = os.getloadavg(), measure(all_ways(Networks(args.length), steps), batches, args.repeats)
        if write is not None:
            facts = {"length": args.length, "load_before": load, "load_after": os.getloadavg()}
            write([json.dumps({**facts, "rows": [asdict(row) for row in rows]}, indent=1) + "\n"])
    found = {(row.name, row.num_steps, row.batch_size): row.seconds for row in rows}
    over = [("K", "batch", "sampling / (K denoiser forwards + readout)", "10 - 90 %")]
    for batch in batches:
        for k in steps:
            pairs = zip(found["parallel readout", k, batch], found["floor", k, batch], strict=True)
            spread = Spread.of([ours / floor for ours, floor in pairs])
            over.append((str(k), str(batch), f"{spread.median:.3f}", f"{spread.low:.3f} - {spread.high:.3f}"))
    caption = (
        f"Blocks of {args.length}, {args.repeats} repeats, one thread, torch {torch.__version__}, load average "
        f"{load[0]:.1f} before and {os.getloadavg()[0]:.1f} after."
    )
    print(markdown_table([COLUMNS, *(row.cells() for row in rows)], caption))
    print(markdown_table(over, caption))
    return 0


if __name__ == "__main__":
    sys.exit(errors_to_exit_code(command, sys.argv[1:]))
