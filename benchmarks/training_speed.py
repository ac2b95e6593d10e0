"""How near a training step comes to the speed of its own matrix products, per stage, size and precision.

    python benchmarks/training_speed.py                                    # every stage, size and precision
    python benchmarks/training_speed.py --quick                            # one stage, two sizes; under two minutes
    python benchmarks/training_speed.py --sizes large --before OTHER_TREE/src --out runs/speed/training.json
    python benchmarks/training_speed.py --profile --sizes large --stages flow

Utilisation: the floating-point operations that torch counts in a step, a second, over the rate of its matrix products.
That rate is measured by the same process between the steps: every kind of product that makes up 97 % of the operations,
with the shapes, strides and dtype that the step uses, alone and as often as the step does.

Seconds are those that the processor spends on the process, one thread: on a machine that others use too they are not
stolen, though a busy neighbour on the same core still slows both sides of a ratio. Tokens a second are by that clock;
JSON has the wall clock's as well. Memory: "live" is the peak of what a step makes and holds, "state" what stays from
step to step: trained weights, gradients, the optimizer's moments and the average.

With --before a second process imports fewstep from another tree; the two take turns, and their losses are compared.
Where a process finds its memory moves its speed by some per cent for as long as it lives: hence several a case.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

import torch
from arguments import OneLineParser, at_least_one, comma_parts
from matmuls import Recorder, dominating, flops_of, seconds_of
from torch.profiler import profile
from training_steps import PRECISIONS, SIZES, STAGES, TrainingStep

import fewstep
from fewstep.cli.main import errors_to_exit_code
from fewstep.cli.output import new_text_file
from fewstep.errors import UserError
from fewstep.evaluation.columns import markdown_table

COVERED = 0.97
COLUMNS = ("stage", "size", "precision", "tree", "tokens/s", "ms a step", "GFLOP/s", "matmul GFLOP/s", "utilisation")
COLUMNS += ("lowest - highest", "live MiB", "state MiB", "time / before", "same loss")
GROUPS = {
    "matrix products": ("mm", "addmm", "bmm", "baddbmm"),
    "GELU": ("gelu", "gelu_backward"),
    "products and sums of elements": ("mul", "add", "add_", "mul_", "addcmul", "addcmul_", "sub", "neg"),
    "casts and copies": ("copy_", "cat", "clone", "fill_"),
    "sums": ("sum", "mean"),
    "softmax and cross-entropy": ("_softmax", "_softmax_backward_data", "_log_softmax", "_log_softmax_backward_data"),
    "layer norm": ("native_layer_norm", "native_layer_norm_backward"),
    "optimizer": ("_fused_adamw_", "sqrt", "addcdiv_", "lerp_", "_foreach_lerp_", "div"),
    "clipping": ("linalg_vector_norm", "_foreach_norm"),
}


@dataclass(frozen=True)
class Turn:
    """One step and its products, alone: seconds of the processor and of the clock, and the loss as a hex float."""

    seconds: float
    wall_seconds: float
    products_seconds: float
    loss: str


@dataclass(frozen=True)
class Case:
    """One stage, size and precision in one tree. ``flops`` of a step, ``product_flops`` of the products measured."""

    stage: str
    size: str
    precision: str
    tree: str
    tokens: int
    flops: int
    product_flops: int
    live_bytes: int
    state_bytes: int
    turns: tuple[Turn, ...]

    def utilisation(self) -> list[float]:
        """Achieved over the products' own rate, one a turn."""
        return [(self.flops / t.seconds) / (self.product_flops / t.products_seconds) for t in self.turns]

    def cells(self, before: "Case | None") -> tuple[str, ...]:
        """A line of the table."""
        seconds = statistics.median(turn.seconds for turn in self.turns)
        rate = statistics.median(self.product_flops / turn.products_seconds for turn in self.turns)
        used = self.utilisation()
        ratio, same = "", ""
        if before is not None:
            pairs = list(zip(self.turns, before.turns, strict=True))
            ratios = sorted(ours.seconds / theirs.seconds for ours, theirs in pairs)
            ratio = f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} - {ratios[-1]:.2f})"
            apart = max(abs(float.fromhex(a.loss) / float.fromhex(b.loss) - 1) for a, b in pairs)
            same = "to the bit" if all(a.loss == b.loss for a, b in pairs) else f"within {apart:.0e}"
        return (
            *(self.stage, self.size, self.precision, self.tree, f"{self.tokens / seconds:,.0f}"),
            *(f"{1e3 * seconds:,.0f}", f"{self.flops / seconds / 1e9:.1f}", f"{rate / 1e9:.1f}"),
            *(f"{statistics.median(used):.0%}", f"{min(used):.0%} - {max(used):.0%}"),
            *(f"{self.live_bytes / 2**20:.0f}", f"{self.state_bytes / 2**20:.0f}", ratio, same),
        )


def serve(stage: str, size: str, precision: str) -> None:
    """Of a process of its own: tell what a step is, then make one for every line that comes in."""
    torch.set_num_threads(1)
    step = TrainingStep(stage, SIZES[size], precision)
    step()
    with Recorder() as recorder:
        step()
    kinds = dominating(recorder.products, COVERED)
    works = [(kind.maker(), count) for kind, count in kinds.items()]
    for work, _ in works:
        work()
    facts = {
        "tokens": SIZES[size].batch * SIZES[size].length,
        "flops": flops_of(step),
        "product_flops": sum(kind.flops * count for kind, count in kinds.items()),
        "live_bytes": recorder.peak_bytes,
        "state_bytes": step.state_bytes(),
    }
    print(json.dumps(facts), flush=True)
    for _ in sys.stdin:
        wall, start = time.perf_counter(), time.process_time()
        loss = step()
        seconds, wall_seconds = time.process_time() - start, time.perf_counter() - wall
        alone = sum(count * seconds_of(work) for work, count in works)
        print(json.dumps(asdict(Turn(seconds, wall_seconds, alone, float(loss).hex()))), flush=True)


def measured(
    stage: str, size: str, precision: str, trees: dict[str, str], repeats: int, processes: int
) -> Iterator[Case]:
    """The case in every tree, in ``processes`` fresh processes each, one after the other."""
    turns: dict[str, list[Turn]] = {tree: [] for tree in trees}
    for _ in range(processes):
        facts, found = one_process_each(stage, size, precision, trees, repeats)
        for tree in trees:
            turns[tree] += found[tree]
    for tree in trees:
        yield Case(stage, size, precision, tree, turns=tuple(turns[tree]), **facts[tree])


def one_process_each(
    stage: str, size: str, precision: str, trees: dict[str, str], repeats: int
) -> tuple[dict[str, dict[str, int]], dict[str, list[Turn]]]:
    """Facts and turns by tree, of processes that take turns; each goes first as often as last."""
    processes = {}
    for tree, source in trees.items():
        command = [sys.executable, __file__, "--serve", f"{stage},{size},{precision}"]
        environment = {**os.environ, "PYTHONPATH": source, "OMP_NUM_THREADS": "1"}
        pipe = subprocess.PIPE
        processes[tree] = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=environment)
    try:
        facts = {tree: json.loads(answer(process)) for tree, process in processes.items()}
        turns: dict[str, list[Turn]] = {tree: [] for tree in trees}
        for repeat in range(repeats):
            for tree in list(trees) if repeat % 2 == 0 else list(trees)[::-1]:
                ask(processes[tree])
                turns[tree].append(Turn(**json.loads(answer(processes[tree]))))
    finally:
        for process in processes.values():
            process.communicate()
    return facts, turns


def ask(process: "subprocess.Popen[str]") -> None:
    """Let a process make a turn."""
    assert process.stdin is not None
    process.stdin.write("turn\n")
    process.stdin.flush()


def answer(process: "subprocess.Popen[str]") -> str:
    """The next line of a process. Raises ``UserError`` where it ended without one."""
    assert process.stdout is not None
    if not (line := process.stdout.readline()):
        raise UserError("a measuring process ended early: see its message above")
    return line


def profiled(stage: str, size: str, precision: str) -> list[tuple[str, ...]]:
    """Where the time of a step goes: shares of the operations' own time, in groups, and the rest."""
    step = TrainingStep(stage, SIZES[size], precision)
    step()
    with profile() as recorded:
        step()
    own = {event.key.removeprefix("aten::"): event.self_cpu_time_total for event in recorded.key_averages()}
    total = sum(own.values())
    shares = {name: sum(own.get(key, 0) for key in keys) / total for name, keys in GROUPS.items()}
    shares["all else, Python among it"] = 1 - sum(shares.values())
    lines = [(stage, size, precision, name, f"{share:.1%}") for name, share in shares.items()]
    grouped = {key for keys in GROUPS.values() for key in keys}
    others = sorted(((value, key) for key, value in own.items() if key not in grouped), reverse=True)
    return lines + [(stage, size, precision, f"of it {key}", f"{value / total:.1%}") for value, key in others[:3]]


def chosen(text: str, option: str, known: Sequence[str]) -> list[str]:
    """The names in ``text``. Raises ``UserError`` for one that is not ``known``."""
    names = comma_parts(text, option)
    if unknown := [name for name in names if name not in known]:
        raise UserError(f"--{option} {unknown[0]!r}: expected of {', '.join(known)}; give one or more of these")
    return names


def parsed(argv: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = OneLineParser("training_speed.py", __doc__.split("\n", 1)[0])
    parser.add_argument("--stages", default=",".join(STAGES), help="with commas between")
    parser.add_argument("--sizes", default=",".join(SIZES))
    parser.add_argument("--precisions", default=",".join(PRECISIONS))
    parser.add_argument("--repeats", type=at_least_one, default=5, help="steps a process")
    parser.add_argument("--processes", type=at_least_one, default=3, help="fresh ones of each tree, a case")
    parser.add_argument("--quick", action="store_true", help="the flow at two sizes in bf16, one process")
    parser.add_argument("--profile", action="store_true", help="print where the time of a step goes instead")
    parser.add_argument("--before", metavar="SRC", help="a folder with another fewstep to take turns with")
    parser.add_argument("--out", type=Path, help="write everything there as JSON")
    parser.add_argument("--overwrite", action="store_true", help="replace the file of --out")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.quick:
        args.stages, args.sizes, args.precisions, args.repeats = "flow", "small,middle", "bf16", 5
        args.processes = 1
    return args


def command(argv: list[str]) -> int:
    """Measure what the command line asks for, print the table, and write JSON where asked."""
    args = parsed(argv)
    if args.serve:
        serve(*args.serve.split(","))
        return 0
    cases = list(
        product(
            chosen(args.stages, "stages", STAGES),
            chosen(args.sizes, "sizes", tuple(SIZES)),
            chosen(args.precisions, "precisions", PRECISIONS),
        )
    )
    torch.set_num_threads(1)
    if args.profile:
        lines = [line for case in cases for line in profiled(*case)]
        print(markdown_table([("stage", "size", "precision", "what", "share"), *lines], "One step, one thread."))
        return 0
    trees = {} if args.before is None else {"before": args.before}
    trees["now"] = str(Path(fewstep.__file__).parents[1])
    file = nullcontext(None) if args.out is None else new_text_file(args.out, overwrite=args.overwrite)
    with file as write:
        load, rows = os.getloadavg(), []
        for case in cases:
            rows += list(measured(*case, trees, args.repeats, args.processes))
            print(" ".join(rows[-1].cells(None)), file=sys.stderr)
        facts: dict[str, Any] = {"torch": torch.__version__, "processors": os.cpu_count(), "repeats": args.repeats}
        facts |= {"load_before": load, "load_after": os.getloadavg(), "sizes": {k: asdict(v) for k, v in SIZES.items()}}
        if write is not None:
            write([json.dumps({**facts, "rows": [asdict(row) for row in rows]}, indent=1) + "\n"])
    earlier = {(r.stage, r.size, r.precision): r for r in rows if r.tree == "before"}
    lines = [r.cells(earlier.get((r.stage, r.size, r.precision)) if r.tree == "now" else None) for r in rows]
    caption = (
        f"Medians of {args.repeats} steps of {args.processes} processes each, one thread, torch {torch.__version__}, "
        f"{os.cpu_count()} processors, load average {load[0]:.1f} before and {os.getloadavg()[0]:.1f} after."
    )
    print(markdown_table([COLUMNS, *lines], caption))
    return 0


if __name__ == "__main__":
    sys.exit(errors_to_exit_code(command, sys.argv[1:]))
