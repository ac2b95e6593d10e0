"""Memory of a process and time of a step under ddp and fsdp, with and without recompute, in two processes by turns.

    python benchmarks/strategies.py
    python benchmarks/strategies.py --width 768 --depth 12 --steps 10 --repeats 5 --out runs/strategies.json

A language model of --width and --depth trains on the built-in speeches by ``python train.py``, one thread a process
over gloo. Memory is the process's own (``RssAnon``, looked at every 20 ms) over what it had without the model: its peak
while it trains, from the third step on, and its peak in all, which is that of the checkpoint: the first process gathers
weights, average and moments for it. The larger of the two processes counts. Large blocks are given back to the system
at once (MALLOC_MMAP_THRESHOLD_), else glibc keeps what was gathered. Ratios of times are within a repeat.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import nullcontext
from itertools import pairwise
from pathlib import Path
from typing import Any

from lightning import Callback
from matmuls import own_memory

from fewstep.cli.arguments import OneLineParser, at_least_one
from fewstep.cli.edge import run
from fewstep.cli.output import new_text_file
from fewstep.evaluation.columns import aligned_columns

ROOT = Path(__file__).parents[1]
FOLDER = "FEWSTEP_STRATEGIES_FOLDER"
WAYS = {
    "ddp": ["--trainer.strategy=ddp"],
    "fsdp": ["--trainer.strategy=fsdp"],
    "ddp, recompute": ["--trainer.strategy=ddp", "--recompute.blocks=true"],
    "fsdp, recompute": ["--trainer.strategy=fsdp", "--recompute.blocks=true"],
}
HEAD = ("strategy", "weights held", "MiB training", "MiB peak", "step, s", "step / ddp", "min", "max")


class Watch(Callback):
    """Writes what a process of the run held and how long its steps took into the folder that FOLDER names."""

    def __init__(self) -> None:
        self.start, self.peak, self.training = 0.0, 0.0, 0.0
        self.ends: list[float] = []
        self.is_training = False
        self.done = threading.Event()

    def _look(self) -> None:
        while not self.done.wait(0.02):
            now = own_memory()
            self.peak = max(self.peak, now)
            if self.is_training:
                self.training = max(self.training, now)

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Begin to look."""
        self.start = own_memory() - sum(weight.numel() for weight in pl_module.parameters()) * 4 / 2**20
        threading.Thread(target=self._look, daemon=True).start()

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Note the time. What comes after the last step, validation and checkpoint, is no training any more."""
        self.ends.append(time.perf_counter())
        self.is_training = 1 < len(self.ends) < trainer.max_steps

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Write; what is saved at the end is not looked at any more."""
        self.done.set()
        from fewstep.training.sharding import parts_here

        found = {
            "held": sum(part.numel() for part in parts_here(pl_module.parameters())),
            "training": self.training - self.start,
            "peak": self.peak - self.start,
            "step": statistics.median(after - before for before, after in pairwise(self.ends[1:])),
        }
        (Path(os.environ[FOLDER]) / f"{pl_module.global_rank}.json").write_text(json.dumps(found))


def measured(flags: list[str], folder: Path) -> dict[str, float]:
    """One run; the larger value of its two processes. Raises ``RuntimeError`` where it fails."""
    folder.mkdir()
    environment = {**os.environ, FOLDER: str(folder), "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parent)}
    environment["MALLOC_MMAP_THRESHOLD_"] = "1000000"
    command = [sys.executable, str(ROOT / "train.py"), "fit", "--config", str(ROOT / "configs" / "language_model.yaml")]
    done = subprocess.run([*command, *flags], env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    both = [json.loads((folder / f"{rank}.json").read_text()) for rank in (0, 1)]
    return {name: max(one[name] for one in both) for name in both[0]}


def by_turns(flags: list[str], repeats: int, scratch: Path) -> dict[str, list[dict[str, float]]]:
    """Every way once a repeat, backwards in every second one."""
    rows: dict[str, list[dict[str, float]]] = {name: [] for name in WAYS}
    for repeat in range(repeats):
        for name in list(WAYS)[:: -1 if repeat % 2 else 1]:
            place = scratch / f"{repeat} {name}"
            rows[name].append(measured([*flags, *WAYS[name], f"--run_dir={place} run"], place))
            print(f"    {repeat + 1} of {repeats}: {name}", file=sys.stderr)
    return rows


def command(argv: list[str]) -> int:
    """Run all ways by turns, print the table, and write JSON where asked."""
    parser = OneLineParser("strategies.py", __doc__.split("\n", 1)[0])
    parser.add_argument("--width", type=at_least_one, default=512)
    parser.add_argument("--depth", type=at_least_one, default=8)
    parser.add_argument("--length", type=at_least_one, default=128, help="tokens in a block")
    parser.add_argument("--batch", type=at_least_one, default=8, help="blocks in a process's batch; float32")
    parser.add_argument("--steps", type=at_least_one, default=6)
    parser.add_argument("--repeats", type=at_least_one, default=3)
    parser.add_argument("--out", type=Path, help="write everything there as JSON")
    parser.add_argument("--overwrite", action="store_true", help="replace the file of --out")
    args = parser.parse_args(argv)
    common = [f"--model.network.init_args.width={args.width}", f"--model.network.init_args.depth={args.depth}"]
    common += [f"--data.block_size={args.length}", f"--data.batch_size={args.batch}", "--data.num_validation_blocks=1"]
    common += [f"--trainer.max_steps={args.steps}", f"--trainer.val_check_interval={args.steps}"]
    common += ["--model.network.init_args.num_heads=8", "--trainer.num_sanity_val_steps=0", "--trainer.devices=2"]
    common += ["--trainer.accelerator=cpu", "--trainer.callbacks+=strategies.Watch"]
    common += ["--trainer.precision=32", "--trainer.logger=false", "--trainer.enable_progress_bar=false"]
    file = nullcontext(None) if args.out is None else new_text_file(args.out, overwrite=args.overwrite)
    with file as write, tempfile.TemporaryDirectory() as scratch:
        rows = by_turns(common, args.repeats, Path(scratch))
        print(aligned_columns([HEAD, *(cells(name, found, rows["ddp"]) for name, found in rows.items())], (0,)))
        if write is not None:
            write([json.dumps({"rows": rows, "load": os.getloadavg()}, indent=2) + "\n"])
    print(f"load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} processors")
    return 0


def cells(name: str, found: list[dict[str, float]], reference: list[dict[str, float]]) -> tuple[str, ...]:
    """Medians over the repeats, and the step's ratio to ddp in the same repeat with its lowest and highest."""
    middle = {key: statistics.median(row[key] for row in found) for key in found[0]}
    ratios = [row["step"] / other["step"] for row, other in zip(found, reference, strict=True)]
    counts = (f"{middle['held']:,.0f}", f"{middle['training']:.0f}", f"{middle['peak']:.0f}", f"{middle['step']:.2f}")
    return (name, *counts, *(f"{value:.2f}" for value in (statistics.median(ratios), min(ratios), max(ratios))))


if __name__ == "__main__":
    sys.exit(run(command, sys.argv[1:]))
