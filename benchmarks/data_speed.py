"""Text for the training step: speed of tokenising and packing, memory and first batch of a large corpus.

    python benchmarks/data_speed.py --gigabytes 2
    python benchmarks/data_speed.py --gigabytes 0.2 --out runs/data_speed.json

The corpus is a .jsonl file in a temporary folder: the built-in speeches again and again, their paragraphs in another
order each time, so that no document is left out as a repetition. It is prepared on disk and mapped by one child
process, mapped again from the cache by a second, and streamed by a third; each reads --batches batches. Memory is the
child's ``ru_maxrss``, in which pages of mapped files count as long as the system leaves them, and the peak of what is
the process's own (``RssAnon``, looked at every 20 ms). A training step of a denoiser (--hidden, --length, --batch) is
timed by turns with batches of that length, for the loader's share of it.
"""

import argparse
import json
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # figures are those of one core

import torch
from arguments import OneLineParser, at_least_one
from matmuls import own_memory
from torch.utils.data import DataLoader

from fewstep.cli.main import errors_to_exit_code
from fewstep.cli.output import new_text_file
from fewstep.data import (
    CorpusSettings,
    StepBatchSampler,
    collate,
    load_tokenizer,
    prepare_corpus,
    train_tokenizer,
)
from fewstep.data.packing import BlockPacker
from fewstep.data.sources import speeches
from fewstep.data.tokenizer import DocumentEncoder
from fewstep.denoisers import RegressionDenoiser
from fewstep.evaluation.columns import aligned_columns

MODES = ("prepared and mapped", "mapped from the cache", "streamed")


def documents(num_bytes: int) -> Iterator[str]:
    """Speeches with their paragraphs in random order until ``num_bytes`` of UTF-8 are reached."""
    speeches_in_paragraphs = [speech.split("\n") for speech in speeches()]
    draw, done = random.Random(0), 0
    while True:
        for paragraphs in speeches_in_paragraphs:
            text = "\n".join(draw.sample(paragraphs, len(paragraphs)))
            done += len(text.encode())
            yield text
            if done >= num_bytes:
                return


def write_corpus(file: Path, num_bytes: int) -> None:
    """One object a line."""
    with file.open("w", encoding="utf-8") as stream:
        for text in documents(num_bytes):
            stream.write(json.dumps({"text": text}, ensure_ascii=False) + "\n")


def tokenising(tokenizer: Any, length: int, megabytes: int, repeats: int) -> dict[str, list[float]]:
    """MB a processor second of the tokenizer alone and with packing, by turns, on ``megabytes`` of text."""
    texts = list(documents(megabytes * 10**6))
    size = sum(len(text.encode()) for text in texts) / 1e6
    encoder, found = DocumentEncoder(tokenizer), {"tokenizer alone": [], "tokenise and pack": []}
    for _ in range(repeats):
        start = time.process_time()
        for text in texts:
            tokenizer.backend_tokenizer.encode_batch_fast([text], add_special_tokens=False)
        found["tokenizer alone"].append(size / (time.process_time() - start))
        packer, start = BlockPacker(tokenizer, length, True), time.process_time()
        for text in texts:
            packer.add(encoder.encode([text]))
        found["tokenise and pack"].append(size / (time.process_time() - start))
    return found


def child(mode: str, settings: CorpusSettings, batch_size: int, num_batches: int) -> dict[str, float]:
    """Open a corpus in a ``mode`` of :data:`MODES` and read batches: seconds, batches a second, and memory in MiB."""
    peak, done = [own_memory()], threading.Event()

    def watch() -> None:
        while not done.wait(0.02):
            peak[0] = max(peak[0], own_memory())

    before = own_memory()
    threading.Thread(target=watch, daemon=True).start()
    start = time.perf_counter()
    if mode == "streamed":
        loader = DataLoader(prepare_corpus(settings).train, batch_size, collate_fn=collate)
    else:
        rows = prepare_corpus(settings).train
        order = StepBatchSampler(len(rows), batch_size, num_batches, seed=0)
        loader = DataLoader(rows, batch_sampler=order, collate_fn=collate)
    batches = iter(loader)
    next(batches)
    first = time.perf_counter() - start
    for _ in range(num_batches - 1):
        next(batches)
    later = time.perf_counter() - start - first
    done.set()
    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {
        "first_batch_seconds": first,
        "processor_seconds": time.process_time(),
        "batches_per_second": (num_batches - 1) / max(later, 1e-9),
        "ru_maxrss_mib": largest,
        "own_peak_mib": peak[0],
        "own_at_start_mib": before,
    }


def in_a_child(mode: str, fields: dict[str, Any], batch_size: int, num_batches: int) -> dict[str, float]:
    """:func:`child` in a process of its own, whose peak of memory is its own too."""
    given = json.dumps([mode, fields, batch_size, num_batches])
    command = [sys.executable, __file__, "--child", given]
    done = subprocess.run(command, text=True, stdout=subprocess.PIPE, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def step_against_loader(settings: CorpusSettings, hidden: int, batch_size: int, repeats: int) -> dict[str, list[float]]:
    """Milliseconds of a training step of a denoiser and of a batch from the loader, by turns."""
    rows = prepare_corpus(settings).train
    order = StepBatchSampler(len(rows), batch_size, repeats + 1, seed=0)
    batches = iter(DataLoader(rows, batch_sampler=order, collate_fn=collate))
    network = RegressionDenoiser(64, settings.block_size, width=hidden, depth=6, num_heads=hidden // 64)
    optimizer = torch.optim.AdamW(network.parameters())
    generator = torch.Generator().manual_seed(0)
    found: dict[str, list[float]] = {"training step": [], "batch from the loader": []}
    for turn in range(repeats + 1):
        start = time.perf_counter()
        length = next(batches)["ids"].shape[1]
        loaded, start = time.perf_counter() - start, time.perf_counter()
        x = torch.randn(batch_size, length, 64, generator=generator)
        network(x, torch.rand(batch_size, generator=generator)).value.square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        if turn:  # the first one warms up
            found["batch from the loader"].append(1000 * loaded)
            found["training step"].append(1000 * (time.perf_counter() - start))
    return found


def spread(values: list[float]) -> dict[str, float]:
    """Median, smallest and largest."""
    return {"median": statistics.median(values), "low": min(values), "high": max(values)}


def measured(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Everything that the tables show."""
    write_corpus(folder / "text.jsonl", round(args.gigabytes * 1e9))
    train_tokenizer(documents(4 * 10**6), args.vocabulary).save_pretrained(folder / "tokenizer")
    fields = {
        "source": str(folder / "text.jsonl"),
        "tokenizer": str(folder / "tokenizer"),
        "block_size": args.length,
        "validation_fraction": 0.01,
        "cache_dir": str(folder / "cache"),
    }
    tokenizer = load_tokenizer(folder / "tokenizer")
    speeds = tokenising(tokenizer, args.length, args.megabytes, args.repeats)
    corpus = {
        mode: in_a_child(mode, {**fields, "streaming": mode == "streamed"}, args.batch, args.batches) for mode in MODES
    }
    steps = step_against_loader(CorpusSettings(**fields), args.hidden, args.batch, args.repeats)
    return {
        "megabytes_per_second": {name: spread(values) for name, values in speeds.items()},
        "corpus_bytes": (folder / "text.jsonl").stat().st_size,
        "corpus": corpus,
        "milliseconds": {name: spread(values) for name, values in steps.items()},
        "load": os.getloadavg(),
        "settings": {"length": args.length, "batch": args.batch, "hidden": args.hidden, "vocabulary": len(tokenizer)},
    }


def tables(found: dict[str, Any]) -> str:
    """What :func:`measured` found, to be read."""
    lines = [("", "median", "min", "max")]
    for unit, group in (("MB per CPU s", found["megabytes_per_second"]), ("ms", found["milliseconds"])):
        lines += [(f"{name}, {unit}", *(f"{value:.4g}" for value in row.values())) for name, row in group.items()]
    heading = (
        "corpus",
        "first batch, s",
        "CPU s in all",
        "batches/s",
        "ru_maxrss, MiB",
        "own peak, MiB",
        "own at start, MiB",
    )
    names = (
        "first_batch_seconds",
        "processor_seconds",
        "batches_per_second",
        "ru_maxrss_mib",
        "own_peak_mib",
        "own_at_start_mib",
    )
    rows = [(mode, *(f"{row[name]:.4g}" for name in names)) for mode, row in found["corpus"].items()]
    share = found["milliseconds"]["batch from the loader"]["median"] / found["milliseconds"]["training step"]["median"]
    return (
        f"{aligned_columns(lines, (0,))}\n\n{aligned_columns([heading, *rows], (0,))}\n\n"
        f"{found['corpus_bytes'] / 1e9:.3g} GB of text; {found['settings']}; a batch takes {share:.2%} of the step "
        f"that it feeds; load average {found['load'][0]:.2f}"
    )


def command(argv: list[str]) -> int:
    """Measure, print the tables, and write JSON where asked."""
    parser = OneLineParser("data_speed.py", __doc__.split("\n", 1)[0])
    parser.add_argument("--gigabytes", type=float, default=2.0, help="size of the corpus")
    parser.add_argument("--megabytes", type=at_least_one, default=10, help="text of one repeat of tokenising")
    parser.add_argument("--vocabulary", type=at_least_one, default=8192)
    parser.add_argument("--length", type=at_least_one, default=128)
    parser.add_argument("--batch", type=at_least_one, default=32)
    parser.add_argument("--hidden", type=at_least_one, default=512, help="width of the denoiser, a multiple of 64")
    parser.add_argument("--batches", type=at_least_one, default=500)
    parser.add_argument("--repeats", type=at_least_one, default=5)
    parser.add_argument("--folder", type=Path, help="where the temporary folder is made")
    parser.add_argument("--out", type=Path, help="write everything there as JSON")
    parser.add_argument("--overwrite", action="store_true", help="replace the file of --out")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.child is not None:
        mode, fields, batch_size, num_batches = json.loads(args.child)
        print(json.dumps(child(mode, CorpusSettings(**fields), batch_size, num_batches)))
        return 0
    torch.set_num_threads(1)
    file = nullcontext(None) if args.out is None else new_text_file(args.out, overwrite=args.overwrite)
    with file as write, tempfile.TemporaryDirectory(dir=args.folder) as folder:
        found = measured(args, Path(folder))
        if write is not None:
            write([json.dumps(found, indent=2) + "\n"])
    print(tables(found))
    return 0


if __name__ == "__main__":
    sys.exit(errors_to_exit_code(command, sys.argv[1:]))
