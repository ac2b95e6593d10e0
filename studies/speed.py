"""What a sample and a training step of each objective cost: tokens a second, and ratios within one run.

    python studies/speed.py objectives                # a step of each objective over one of flow matching
    python studies/speed.py model --model runs/quickstart/model --steps 1,2,4    # beside its own language model
    python studies/speed.py objectives --quick        # a trial run

`model` aside, networks have the shipped sizes and random weights, on which the time does not depend. Cases take turns
within a repeat, backwards in every second one, so that other work on the machine hits all alike; ratios are taken
within a repeat. On a CPU seconds are those that one thread spent; on a GPU those of the clock, with the device
synchronised.
"""

import argparse
import math
import os
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from itertools import product

import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

from fewstep.denoisers import FlowModel, RegressionDenoiser
from fewstep.lab.compare.runs import objective_of, settings_of
from fewstep.model import SavedModel
from fewstep.objectives import OBJECTIVES, DistributionMatching, Objective
from fewstep.paths import linear_path
from fewstep.readouts import READOUTS, CausalTransformer, CommitmentHead, TransformerReadout
from fewstep.samplers import FlowSampler, default_sampling
from fewstep.samplers.sampler import DefaultSampling
from fewstep.settings import configs_folder
from fewstep.shapes import example_generators, randn
from fewstep.types import Latents

LATENT_DIM = 8
GPT2 = "GPT-2 with KV cache"
Work = Callable[[], object]


class Clock:
    """Seconds of a device: "cpu", "cuda" or "mps"."""

    def __init__(self, device: str) -> None:
        self.on_cpu = device == "cpu"

    def seconds(self, work: Work) -> float:
        """Of one call."""
        if self.on_cpu:
            start = time.process_time()
            work()
            return time.process_time() - start
        torch.accelerator.synchronize()
        start = time.perf_counter()
        work()
        torch.accelerator.synchronize()
        return time.perf_counter() - start

    def by_turns(self, works: dict[str, Work], repeats: int, within: float = math.inf) -> dict[str, list[float]]:
        """Seconds of each case in each repeat, after one call that warms up.

        After ``within`` seconds no repeat but the first begins.
        """
        start = time.perf_counter()
        for work in works.values():
            work()
        taken: dict[str, list[float]] = {name: [] for name in works}
        for repeat in range(repeats):
            if repeat and time.perf_counter() - start > within:
                break
            names = list(works) if repeat % 2 == 0 else list(works)[::-1]
            for name in names:
                taken[name].append(self.seconds(works[name]))
        return taken


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> str:
    """Median, lowest and highest ratio within a repeat."""
    ratios = sorted(a / b for a, b in zip(ours, theirs, strict=True))
    return f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} - {ratios[-1]:.2f})"


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """As Markdown."""
    for cells in (columns, ("---",) * len(columns), *rows):
        print("| " + " | ".join(cells) + " |")


def denoiser_of(device: str, two_times: bool = False) -> RegressionDenoiser:
    """The shipped denoiser of 32 positions."""
    sizes = {"width": 192, "depth": 5, "num_heads": 3}
    return RegressionDenoiser(LATENT_DIM, 32, **sizes, two_times=two_times, max_frequency=30).to(device)


class Networks:
    """A flow, its parallel readout and an autoregressive head, and a GPT-2 of as many parameters as the first two.

    In ``dtype`` bfloat16 GPT-2's weights are in it, and ours are cast by autocast.
    """

    def __init__(
        self,
        denoiser: RegressionDenoiser,
        readout: TransformerReadout,
        causal: CausalTransformer,
        device: str,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.device, self.vocab_size = device, causal.vocab_size
        self.positions, self.latent_dim = denoiser.config["num_positions"], denoiser.config["latent_dim"]
        self.length = self.positions * readout.stride
        self.flow = FlowModel(denoiser, linear_path(), "x1").eval().to(device)
        self.readout = readout.eval().to(device)
        self.head = CommitmentHead(causal.eval().to(device))
        self.num_parameters = sum(part.numel() for part in (*denoiser.parameters(), *readout.parameters()))
        self.gpt2 = self.matched_gpt2(self.num_parameters).to(device, dtype)
        self.autocast = partial(torch.autocast, device, torch.bfloat16, enabled=dtype == torch.bfloat16)

    def matched_gpt2(self, target: int) -> GPT2LMHeadModel:
        """The GPT-2 whose number of parameters is nearest to ``target``."""
        sizes = [(layers, width) for layers in range(2, 13) for width in range(64, 1025, 64)]

        def count(layers: int, width: int) -> int:
            return (self.vocab_size + self.length + 1) * width + layers * (12 * width**2 + 13 * width) + 2 * width

        layers, width = min(sizes, key=lambda size: abs(count(*size) - target))
        config = GPT2Config(vocab_size=self.vocab_size, n_positions=self.length + 1, n_embd=width, n_layer=layers)
        config.n_head, config.bos_token_id, config.eos_token_id, config.pad_token_id = width // 64, 0, None, 0
        return GPT2LMHeadModel(config).eval()

    @torch.inference_mode()
    def write(self, readout: nn.Module | CommitmentHead, batch: int, num_steps: int) -> None:
        """From noise to ids."""
        generators = example_generators(0, 0, batch)
        x_0 = randn((batch, self.positions, self.latent_dim), torch.zeros((), device=self.device), generators)
        mask = torch.ones(x_0.shape[:2], dtype=torch.bool, device=self.device)
        sampler = FlowSampler(self.flow.path)
        with self.autocast():
            *_, last = sampler.iterate(self.flow, x_0, num_steps=num_steps, mask=mask, generator=generators)
            readout.generate(last.x_t, mask, generator=example_generators(0, batch, batch))  # type: ignore[operator]

    @torch.inference_mode()
    def autoregressive(self, batch: int) -> None:
        """As many tokens by GPT-2 with its KV cache."""
        start = torch.zeros(batch, 1, dtype=torch.long, device=self.device)
        self.gpt2.generate(
            start,
            attention_mask=torch.ones_like(start),
            do_sample=True,
            top_k=0,
            use_cache=True,
            max_new_tokens=self.length,
            min_new_tokens=self.length,
        )

    def works(self, batch: int, steps: Sequence[int], head_steps: Sequence[int]) -> dict[str, Work]:
        """What writes ``batch`` blocks: GPT-2, the parallel readout after ``steps``, the head after ``head_steps``."""
        works: dict[str, Work] = {GPT2: partial(self.autoregressive, batch)}
        works |= {f"parallel readout, K = {k}": partial(self.write, self.readout, batch, k) for k in steps}
        return works | {f"autoregressive head, K = {k}": partial(self.write, self.head, batch, k) for k in head_steps}


def trained(args: argparse.Namespace) -> None:
    """Tokens a second of a saved model by its readouts, and ratios to its own language model with KV cache."""
    bundle, clock, rows = SavedModel.from_pretrained(args.model, kind="text").to(args.device), Clock(args.device), []
    length, language_model = bundle.identity.block_size, bundle.scorer()
    own_readouts = [name for name in ("parallel", "mask_predict", "head") if READOUTS[name].part in bundle.parts()]
    readers = {name: bundle.open_readout(READOUTS[name]) for name in own_readouts}
    steps = [default_sampling(bundle.identity, int(number)) for number in args.steps.split(",")]

    @torch.inference_mode()
    def write(name: str, own: DefaultSampling, batch: int) -> None:
        sampler = FlowSampler(bundle.flow().path, grid=bundle.identity.default_grid(), reinjection=own.reinjection)
        flow, noise = bundle.flow(), example_generators(0, 0, batch)
        x_0 = randn((batch, *bundle.latent_shape()), next(flow.parameters()), noise)
        z = sampler.sample(flow, x_0, num_steps=own.num_steps, generator=noise).states[-1]
        mask = torch.ones_like(z[..., 0], dtype=torch.bool)
        readers[name].generate(z, mask, temperature=READOUTS[name].temperature, generator=noise)

    @torch.inference_mode()
    def autoregressive(batch: int) -> None:
        language_model.generate(batch, length, generator=example_generators(0, 0, batch))

    for batch in [1] if args.quick else [int(number) for number in args.batches.split(",")]:
        works: dict[str, Work] = {"its language model": partial(autoregressive, batch)}
        for name, own in product(readers, steps):
            works[f"{name} readout, K = {own.num_steps}"] = partial(write, name, own, batch)
        taken = clock.by_turns(works, args.repeats)
        for name, seconds in taken.items():
            low, rate, high = (batch * length / f(seconds) for f in (max, statistics.median, min))
            times = ratio(taken["its language model"], seconds)
            rows.append((name, str(batch), f"{rate:,.0f}", f"{low:,.0f} - {high:,.0f}", times))
    print_table(("way", "batch", "tokens/s", "lowest - highest", "times the language model's speed"), rows)


def objective_step(name: str, device: str) -> Work:
    """One training step of the objective of a shipped settings file, without the encoder."""
    objective: Objective = objective_of(configs_folder() / "flow.yaml", settings_of(name), {})
    model = FlowModel(denoiser_of(device, objective.estimate.two_times), linear_path(), "velocity")
    teacher = None
    if objective.needs_teacher:
        teacher = FlowModel(denoiser_of(device), linear_path(), "velocity").requires_grad_(False).eval()
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(32, 32, LATENT_DIM, generator=generator).to(device)
    latents = Latents(z, torch.ones(z.shape[:2], dtype=torch.bool, device=device))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    if isinstance(objective, DistributionMatching):
        assert teacher is not None
        auxiliary = FlowModel(denoiser_of(device, True), linear_path(), "velocity")
        return partial(matching_step, objective, model, teacher, auxiliary, latents, generator)

    def step() -> None:
        output = objective.forward(
            model, latents, tokens=None, readout=None, generator=generator, teacher=teacher, progress=0.5
        )
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()

    return step


def matching_step(
    objective: DistributionMatching,
    model: FlowModel,
    teacher: FlowModel,
    auxiliary: FlowModel,
    latents: Latents,
    generator: torch.Generator,
) -> None:
    """One update of the student and those of the auxiliary network, by gradient descent."""
    generated = objective.generate(model, latents, generator)
    objective.student_loss(generated, auxiliary, teacher, generator).loss.backward()
    descend(model)
    for _ in range(objective.auxiliary_updates):
        objective.auxiliary_loss(generated, auxiliary, generator).backward()
        descend(auxiliary)


@torch.no_grad()
def descend(model: FlowModel) -> None:
    """A small step against the gradients, which are then cleared."""
    for parameter in model.parameters():
        if parameter.grad is not None:
            parameter -= 1e-4 * parameter.grad
            parameter.grad = None


def objectives(args: argparse.Namespace) -> None:
    """Time of each objective over flow matching's."""
    names = [name for name in OBJECTIVES if (configs_folder() / "objectives" / f"{name}.yaml").is_file()]
    works = {name: objective_step(name, args.device) for name in (names[:2] if args.quick else names)}
    taken = Clock(args.device).by_turns(works, args.repeats)
    base = taken["flow_matching"]
    rows = [(name, f"{1000 * statistics.median(s):.1f}", ratio(s, base)) for name, s in taken.items()]
    print_table(("objective", "ms a step", "time over flow matching"), rows)


STUDIES = {"objectives": objectives, "model": trained}


def main() -> None:
    """Measure what the command line asks for, and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=tuple(STUDIES))
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--steps", default="1,4,16", help="sampling steps, with commas between")
    parser.add_argument("--batches", default="1,16,64", help="batch sizes of sampling, with commas between")
    parser.add_argument("--model", default="runs/quickstart/model", help="the saved model of `model`")
    parser.add_argument("--quick", action="store_true", help="a trial run: the smallest case")
    args = parser.parse_args()
    torch.set_num_threads(1)
    load = os.getloadavg()[0]
    STUDIES[args.what](args)
    where = torch.cuda.get_device_name() if args.device == "cuda" else "CPU, one thread"
    print(f"\n{where}, torch {torch.__version__}, {args.repeats} repeats, load {load:.1f} to {os.getloadavg()[0]:.1f}.")


if __name__ == "__main__":
    main()
