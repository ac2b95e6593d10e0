"""What the diagnostics cost: local DABI in forward passes of the decoder, and the callbacks' share of a training stage.

    python benchmarks/diagnostics_cost.py --model runs/quickstart/model
    python benchmarks/diagnostics_cost.py --model runs/quickstart/model --stages autoencoder,flow --out runs/cost

Both are ratios within one process: the first of median times of local DABI (64 examples x 4 positions: boundary
search, direction, 8 probes) and of a forward pass of all 256 points; the second of the time spent in the callbacks and
the whole of a quickstart-sized stage.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

from fewstep.data import CorpusSettings, prepare_corpus
from fewstep.diagnostics.boundary import normal_boundary
from fewstep.diagnostics.dabi import dabi
from fewstep.diagnostics.decoding import rms
from fewstep.diagnostics.response import CATEGORICAL
from fewstep.evaluation.adapters import decoder_of
from fewstep.evaluation.baselines import held_out_blocks
from fewstep.evaluation.subject import make_subject
from fewstep.model import SavedModel
from fewstep.pipeline import TextGenerator
from fewstep.settings import configs_folder
from fewstep.training.callbacks import Diagnostics
from fewstep.training.command import run_training


def seconds(function: Callable[[], object], repeats: int) -> list[float]:
    """Times of ``repeats`` calls after one that warms up."""
    function()
    found = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        found.append(time.perf_counter() - start)
    return found


def forward_equivalents(model: Path, repeats: int) -> None:
    """Print the cost of local DABI in decoder forward passes."""
    bundle = SavedModel.from_pretrained(model)
    corpus = prepare_corpus(CorpusSettings(tokenizer=str(model / "tokenizer"), block_size=bundle.identity.block_size))
    tokens, _ = held_out_blocks(corpus.validation, 65)
    subject = make_subject(TextGenerator(bundle), tokens, num_examples=64, num_positions=4, seed=0)
    decode, z = decoder_of(bundle.reader()), subject.z
    everything = z.repeat_interleave(4, 0)
    calls = {"evaluations": 0}

    def counted(x: torch.Tensor) -> torch.Tensor:
        calls["evaluations"] += len(x) / len(everything)
        return decode(x)

    def local() -> None:
        points = normal_boundary(counted, z, subject.positions)
        generator = torch.Generator().manual_seed(0)
        dabi(counted, CATEGORICAL, points, rms=rms(z), radii=(), generator=generator)

    def forward() -> None:
        with torch.no_grad():
            decode(everything)

    ours, once = seconds(local, repeats), seconds(forward, 5 * repeats)
    ratio = statistics.median(ours) / statistics.median(once)
    spread = (min(ours) / max(once), max(ours) / min(once))
    per_call = calls["evaluations"] / (repeats + 1)
    print(f"local DABI, 64 examples x 4 positions: {ratio:.0f} forward passes of all 256 points in time")
    print(
        f"  (from {spread[0]:.0f} to {spread[1]:.0f} over {repeats} repeats; {per_call:.1f} evaluations of the decoder)"
    )


def callback_share(stages: list[str], model: Path, out: Path) -> None:
    """Train quickstart-sized stages and print the share of their time that the diagnostics took."""
    spent = [0.0]
    watched = Diagnostics
    watched.on_validation_epoch_end = timed(watched.on_validation_epoch_end, spent)  # type: ignore[method-assign]
    for stage in stages:
        spent[0] = 0.0
        arguments = ["fit", "--config", str(configs_folder() / f"{stage}.yaml"), f"--run_dir={out / stage}"]
        arguments += ["--overwrite"]
        if stage in ("flow", "head"):
            arguments.append(f"--model.autoencoder={model}")
        if stage == "head":
            arguments.append(f"--model.language_model={model}")
        start = time.perf_counter()
        run_training(arguments)
        total = time.perf_counter() - start
        rest = total - spent[0]
        print(
            f"{stage}: diagnostics {spent[0]:.1f} s, everything else {rest:.1f} s: {100 * spent[0] / rest:.1f} % added"
        )


def timed(method: Callable[..., None], spent: list[float]) -> Callable[..., None]:
    """``method`` with its time added to ``spent``."""

    def call(*arguments: object) -> None:
        start = time.perf_counter()
        method(*arguments)
        spent[0] += time.perf_counter() - start

    return call


def main() -> None:
    """Measure what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=Path("runs/quickstart/model"))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--stages", default="", help="stages to train, with commas between")
    parser.add_argument("--out", type=Path, default=Path("runs/diagnostics_cost"))
    args = parser.parse_args()
    forward_equivalents(args.model, args.repeats)
    stages = [name for name in args.stages.split(",") if name]
    if stages:
        callback_share(stages, args.model, args.out)


if __name__ == "__main__":
    main()
