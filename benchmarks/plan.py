"""Memory and time of training a denoiser on GPUs that are not here, from a stated model and constants that are given.

    python benchmarks/plan.py                                           # 100M, 1B and 7B on 1 to 256 GPUs
    python benchmarks/plan.py --mfu 0.5 --peak_tflops 312 --memory_gib 40 --bandwidth_gbytes 25

W width, N layers, K positions, D latent dimension, B examples on a GPU, P parameters, G GPUs; this project's model:

- Parameters: counted exactly, :func:`num_parameters`. Each costs 20 bytes in float32: itself, its gradient, the two
  moments of Adam, its average (EMA). Every GPU holds it all (`ddp`).
- Activations: what the backward pass keeps, in units of one number a position and channel (K W) a layer. The constant
  is measured here, on a small network in bf16 autocast on the CPU, by counting what autograd saves (--activations gives
  it instead). With recompute a layer keeps its input alone, in float32, and one layer at a time the rest. Attention
  keeps no K x K.
- Operations of a step: six for each weight that multiplies a position (2 forward, 4 backward), 12 K W N a position for
  attention, six for each weight of the modulation an example; with recompute 4/3 of that. (6 N D, arXiv:2001.08361,
  section 2.1, with the modulation counted where it acts.)
- Time: operations over --peak_tflops times --mfu, or that of the gradients on their way where it is longer: these
  overlap at best. A parameter sends 2 (G - 1) / G times 4 bytes for every optimizer step. --bandwidth_gbytes is that of
  one GPU.
- Length of a training: --positions_per_parameter latent positions a parameter (20 is what arXiv:2203.15556 found for
  language models; nobody has found it for these).

Not in it: the frozen autoencoder and readout (a latent cache spares the encoder), workspaces, fragmentation, which
--reserve leaves room for, and validation.
"""

import json
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from arguments import OneLineParser, at_least_one
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from fewstep.cli.main import errors_to_exit_code
from fewstep.cli.output import new_text_file
from fewstep.denoisers import RegressionDenoiser
from fewstep.evaluation.columns import aligned_columns, markdown_table

STATE_BYTES = 4 * 5
"""Of a parameter: itself, gradient, two moments, average."""
LATENT_DIM, FEATURES = 32, 128
GIB, DAY = 2**30, 86_400


@dataclass(frozen=True)
class Size:
    """A denoiser by its width W and depth N."""

    name: str
    width: int
    depth: int


SIZES = (Size("100M", 640, 12), Size("1B", 1792, 17), Size("7B", 4096, 23))
LENGTHS = (1024, 2048, 4096, 8192)
GPUS = (1, 8, 64, 256)


@dataclass(frozen=True)
class Machine:
    """What is assumed of a GPU and its network; ``activations`` in numbers a position, channel and layer."""

    peak_tflops: float
    mfu: float
    memory_gib: float
    reserve: float
    bandwidth_gbytes: float
    activations: float

    @property
    def room(self) -> float:
        """Bytes that a training may fill."""
        return self.memory_gib * GIB * (1 - self.reserve)


@dataclass(frozen=True)
class Plan:
    """One row: what fits and how long it takes. ``batch`` 0: nothing fits. Bytes are those of one GPU."""

    size: str
    parameters: int
    length: int
    gpus: int
    recompute: bool
    batch: int
    accumulate: int
    state_gib: float
    activations_gib: float
    positions_per_second: float
    sending_share: float
    days: float

    def cells(self) -> tuple[str, ...]:
        """The row as text."""
        head = (self.size, f"{self.length}", f"{self.gpus}")
        if not self.batch:
            return (*head, "does not fit", "", "", f"{self.state_gib:.0f}", "", "", "", "")
        return (
            *head,
            "yes" if self.recompute else "no",
            f"{self.batch}",
            f"{self.accumulate}",
            f"{self.state_gib:.1f}",
            f"{self.activations_gib:.1f}",
            f"{self.positions_per_second:,.0f}",
            f"{self.sending_share:.0%}",
            f"{self.days:.3g}",
        )


COLUMNS = (
    "size",
    "length",
    "GPUs",
    "recompute",
    "batch",
    "accumulate",
    "state, GiB",
    "activations, GiB",
    "positions/s",
    "sending / computing",
    "days",
)


def weights_a_position(width: int, depth: int, latent_dim: int = LATENT_DIM) -> int:
    """Weights that multiply each latent position: attention 4 W^2, the two linear maps 8 W^2, the ends."""
    return 12 * width**2 * depth + 2 * latent_dim * width


def weights_an_example(width: int, depth: int) -> int:
    """Weights that multiply each example once: the modulation of every layer, and the embedding of time."""
    return 6 * width**2 * depth + FEATURES * width + width**2


def num_parameters(width: int, depth: int, positions: int, latent_dim: int = LATENT_DIM) -> int:
    """All of a :class:`~fewstep.denoisers.RegressionDenoiser` with one time and without self-conditioning."""
    matrices = weights_a_position(width, depth, latent_dim) + weights_an_example(width, depth)
    vectors = depth * (2 + 5 + 5 + 6) * width + (1 + 2 + 2) * width + latent_dim
    return matrices + vectors + positions * width


def step_flops(width: int, depth: int, positions: int, batch: int, latent_dim: int = LATENT_DIM) -> float:
    """Operations of one forward and backward pass; two for each multiply-add."""
    attention = 2 * positions * width * depth  # scores and sums over K, as multiply-adds a position
    each = weights_a_position(width, depth, latent_dim) + attention
    return 6.0 * batch * (positions * each + weights_an_example(width, depth))


def saved_bytes(network: RegressionDenoiser, x: Tensor, t: Tensor, precision: torch.dtype | None) -> int:
    """Bytes that autograd keeps for the backward pass of one call, parameters left out and each storage once."""
    own = {parameter.untyped_storage().data_ptr() for parameter in network.parameters()}
    storages: dict[StorageWeakRef, int] = {}
    kept: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            storages[StorageWeakRef(storage)] = storage.nbytes()
            kept.append(tensor)  # a storage that is freed would lend its address to the next one
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        with torch.autocast("cpu", dtype=precision) if precision else nullcontext():
            output = network(x, t).value
        output.float().square().mean()
    return sum(storages.values())


def measured_activations(width: int = 64, positions: int = 256, batch: int = 2) -> float:
    """Bytes a layer keeps, in bf16 autocast, over 2 K W: the slope over depth, so that the ends do not count.

    What autocast keeps of the weights themselves, 2 bytes each, is taken off: it does not grow with the batch.
    From 256 positions on torch's attention on the CPU keeps more, about 4 of 30; the plan is for those lengths.
    """
    found = []
    for depth in (1, 3):
        network = RegressionDenoiser(LATENT_DIM, positions, width=width, depth=depth, num_heads=2)
        x, t = torch.ones(batch, positions, LATENT_DIM), torch.full((batch,), 0.5)
        found.append([saved_bytes(network, x[:rows], t[:rows], torch.bfloat16) for rows in (1, batch)])
    shallow, deep = (large - small for small, large in found)  # of one more example
    return (deep - shallow) / 2 / (2 * positions * width * (batch - 1))


def activation_bytes(size: Size, positions: int, batch: int, machine: Machine, recompute: bool) -> float:
    """What the backward pass keeps, in bf16 numbers."""
    one = 2 * positions * size.width * batch
    layers = 2 * size.depth + machine.activations if recompute else size.depth * machine.activations
    return one * layers


def plan(size: Size, length: int, gpus: int, machine: Machine, step_positions: int, lifetime: float) -> Plan:
    """The faster of the two that fit, with recompute or without; of equal ones without."""
    parameters = num_parameters(size.width, size.depth, length)
    largest = max(1, step_positions // (length * gpus))
    found = []
    state = STATE_BYTES * parameters
    for recompute in (False, True):
        room = machine.room - state
        batch = min(largest, int(room // activation_bytes(size, length, 1, machine, recompute)))
        if batch >= 1:
            found.append(_timed(size, parameters, length, gpus, recompute, batch, machine, largest, lifetime))
    nothing = Plan(size.name, parameters, length, gpus, True, 0, 0, state / GIB, 0, 0, 0, 0)
    return max(found, key=lambda row: row.positions_per_second, default=nothing)


def _timed(
    size: Size,
    parameters: int,
    length: int,
    gpus: int,
    recompute: bool,
    batch: int,
    machine: Machine,
    largest: int,
    lifetime: float,
) -> Plan:
    accumulate = -(-largest // batch)
    flops = accumulate * step_flops(size.width, size.depth, length, batch) * (4 / 3 if recompute else 1)
    computing = flops / (machine.peak_tflops * 1e12 * machine.mfu)
    sending = 2 * 4 * parameters * (gpus - 1) / gpus / (machine.bandwidth_gbytes * 1e9)
    rate = gpus * batch * accumulate * length / max(computing, sending)
    return Plan(
        size=size.name,
        parameters=parameters,
        length=length,
        gpus=gpus,
        recompute=recompute,
        batch=batch,
        accumulate=accumulate,
        state_gib=STATE_BYTES * parameters / GIB,
        activations_gib=activation_bytes(size, length, batch, machine, recompute) / GIB,
        positions_per_second=rate,
        sending_share=sending / computing,
        days=lifetime * parameters / rate / DAY,
    )


def plans(machine: Machine, step_positions: int, lifetime: float) -> Iterator[Plan]:
    """Every size at every length on every number of GPUs."""
    for size in SIZES:
        for length in LENGTHS:
            for gpus in GPUS:
                yield plan(size, length, gpus, machine, step_positions, lifetime)


def command(argv: list[str]) -> int:
    """Print the table, and write JSON where asked."""
    parser = OneLineParser("plan.py", __doc__.split("\n", 1)[0])
    parser.add_argument("--peak_tflops", type=float, default=989.0, help="bf16, of one GPU (an H100's data sheet: 989)")
    parser.add_argument("--mfu", type=float, default=0.4, help="share of that which is reached")
    parser.add_argument("--memory_gib", type=float, default=80.0)
    parser.add_argument("--reserve", type=float, default=0.1, help="share of the memory that is left alone")
    parser.add_argument("--bandwidth_gbytes", type=float, default=40.0, help="GB/s from one GPU to the others")
    parser.add_argument("--activations", type=float, help="numbers kept a position, channel and layer; else measured")
    parser.add_argument("--step_positions", type=at_least_one, default=2**19, help="latent positions a step, at least")
    parser.add_argument("--positions_per_parameter", type=float, default=20.0)
    parser.add_argument("--markdown", action="store_true", help="print the table for a page")
    parser.add_argument("--out", type=Path, help="write everything there as JSON")
    parser.add_argument("--overwrite", action="store_true", help="replace the file of --out")
    args = parser.parse_args(argv)
    activations = measured_activations() if args.activations is None else args.activations
    machine = Machine(
        args.peak_tflops, args.mfu, args.memory_gib, args.reserve, args.bandwidth_gbytes, round(activations, 2)
    )
    rows = list(plans(machine, args.step_positions, args.positions_per_parameter))
    facts = {**asdict(machine), "step_positions": args.step_positions, "lifetime": args.positions_per_parameter}
    if args.out is not None:
        with new_text_file(args.out, overwrite=args.overwrite) as write:
            write([json.dumps({**facts, "rows": [asdict(row) for row in rows]}, indent=2) + "\n"])
    lines = [COLUMNS, *(row.cells() for row in rows)]
    told = ", ".join(f"{name} {value:g}" for name, value in facts.items())
    print(markdown_table(lines, told) if args.markdown else f"{aligned_columns(lines, (0,))}\n{told}")
    return 0


if __name__ == "__main__":
    sys.exit(errors_to_exit_code(command, sys.argv[1:]))
