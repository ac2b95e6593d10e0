"""``fewstep compare``: objectives on one latent space at equal training compute, in one table and one picture."""

import argparse
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fewstep.cli.arguments import OneLineParser, at_least_one, comma_numbers, comma_parts
from fewstep.cli.device import pick_device
from fewstep.cli.edge import configs_folder
from fewstep.cli.evaluate import make_folder
from fewstep.cli.output import new_text_file
from fewstep.cli.progress import ProgressBar
from fewstep.cli.sizes import size_settings
from fewstep.errors import UserError
from fewstep.provenance import provenance

if TYPE_CHECKING:
    from fewstep.evaluation.compare_bench import ImageBench, TextBench
    from fewstep.evaluation.comparison import Bench, Run
    from fewstep.report.contrast import Comparison

STAGES = {"text": "flow", "images": "image_flow"}
MARKER, RESULT, TABLE, PICTURE = "training.json", "compare.json", "compare.md", "compare.png"
CAPTION = (
    "Stiffness peak in 1 / time; passes: forward passes an example of a batch in the objective's own training, a "
    "backward pass counted as two; training s: its wall time with start and validation; beats the flow by: the plain "
    "flow's figure at the same setting over this one, with a 95 % interval of a paired bootstrap."
)


def parser() -> argparse.ArgumentParser:
    """The options of the command."""
    result = OneLineParser("fewstep compare", "Train objectives on one model's latents and compare their samples.")
    result.add_argument("path", nargs="?", help="folder of a text model, or of an image model")
    result.add_argument(
        "--out", type=Path, help="folder for everything (default: runs/compare), or the contrast's file"
    )
    result.add_argument(
        "--contrast", nargs="+", type=Path, metavar="FOLDER", help="draw finished comparisons beside each other"
    )
    result.add_argument(
        "--objectives",
        help="comma-separated: names of configs/objectives, or dotted paths such as my_package.Mine (default: all)",
    )
    result.add_argument(
        "--budget",
        type=at_least_one,
        default=2100,
        help="forward passes an example of a batch that each objective's training may take (default: %(default)s)",
    )
    result.add_argument(
        "--teacher_steps", type=at_least_one, default=700, help="training steps of the flow that all start from"
    )
    result.add_argument("--steps", default="1,2,4,8", help="numbers of sampling steps K (default: %(default)s)")
    result.add_argument("--reinjection", default="0,1", help="strengths (default: %(default)s)")
    result.add_argument("--readout", help="some of parallel, head, head_off (default: those that the model has)")
    result.add_argument("--samples", type=at_least_one, default=128, help="samples a seed (default: %(default)s)")
    result.add_argument("--seeds", type=at_least_one, default=3, help="number of seeds, from 0 on (default: 3)")
    result.add_argument("--scorer", default="run", help="run for the model's own language model, or a transformers one")
    result.add_argument("--scorer_dtype", choices=("float32", "bfloat16", "float16"), default="float32")
    result.add_argument("--size", help="debug, hour, base or a YAML file, for the network and its training")
    result.add_argument("--source", help="the text; left out: what the model was trained on")
    result.add_argument("--max_documents", type=at_least_one, help="as in the model's training")
    result.add_argument("--cache_dir", default="~/.cache/fewstep", help="folder for prepared text")
    result.add_argument("--batch_size", type=at_least_one, default=64, help="samples made at a time")
    result.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="where models run")
    result.add_argument("--cci_examples", type=int, default=8, help="samples that CCI is measured on; 0: not at all")
    result.set_defaults(text_field="text", no_pack=False)
    return result


def main(argv: list[str]) -> int:
    """Compare as ``argv`` says and return the exit code; what is done is not done again. Raises ``UserError``."""
    args = parser().parse_args(argv)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if args.contrast is not None:
        return contrast(args)
    if args.path is None:
        raise UserError("no model given: give the folder of a text model or an image model")
    steps = list(dict.fromkeys(comma_numbers(args.steps, "steps", int)))
    strengths = list(dict.fromkeys(comma_numbers(args.reinjection, "reinjection", float)))
    if args.cci_examples < 0:
        raise UserError(f"--cci_examples {args.cci_examples}: expected a whole number of at least 0")
    if min(steps) < 1 or not 0 <= min(strengths) <= max(strengths) <= 1:
        raise UserError(
            f"--steps {args.steps} --reinjection {args.reinjection}: expected K >= 1 and strengths in [0, 1]"
        )
    from fewstep.model import kind_of

    out, kind = (args.out or Path("runs/compare")).expanduser(), kind_of(args.path)
    plan = planned_runs(args, kind, out, steps)
    made_with = provenance("compare", argv)
    make_folder(out)
    bench: Bench | None = text_bench(args) if kind == "text" else None  # what is missing is told before the training
    for number, run in enumerate(plan, 1):
        say(f"training {number} of {len(plan)}, {run.name}: {run.steps:,} steps, {run.passes:,.0f} passes an example")
        train(run, args, kind)
    bench = bench or image_bench(args, plan[0].folder / "model")
    tell(compared(bench, plan[1:], steps, strengths, out, made_with), out, made_with)
    return 0


def planned_runs(args: argparse.Namespace, kind: str, out: Path, steps: Sequence[int]) -> "list[Run]":
    """The teacher and what starts from it. Raises ``UserError``."""
    from fewstep.evaluation.comparison import planned
    from fewstep.objectives import OBJECTIVES

    names = comma_parts(args.objectives, "objectives") if args.objectives else list(OBJECTIVES)
    base = configs_folder() / f"{STAGES[kind]}.yaml"
    return planned(names, settings_of, base, out, budget=args.budget, teacher_steps=args.teacher_steps, steps=steps)


def settings_of(name: str) -> Path:
    """The settings file of a registered objective."""
    return configs_folder() / "objectives" / f"{name}.yaml"


def train(run: "Run", args: argparse.Namespace, kind: str) -> None:
    """Train one run in this process, from its checkpoint where a stopped one left it; nothing where it is done.

    Raises ``UserError`` where its folder holds a run of other settings.
    """
    arguments = training_arguments(run, args, kind)
    marker, settings = run.folder / MARKER, json.loads(json.dumps([*arguments, os.path.abspath(args.path)]))
    state = json.loads(marker.read_text()) if marker.is_file() else {"settings": settings, "seconds": 0.0}
    if state["settings"] != settings:
        strange = [new for new in settings if new not in state["settings"]]
        raise UserError(f"{run.folder} was trained otherwise (now {' '.join(strange)[:200]}): give another --out")
    if (run.folder / "model" / "config.json").is_file():
        if not marker.is_file():
            raise UserError(f"{run.folder} holds a run that is not this command's: give another --out")
        say(f"{run.name} is done already, see {run.folder}")
        return
    from fewstep.training.command import run_training

    run.folder.mkdir(parents=True, exist_ok=True)
    began = time.perf_counter()
    resume = ["--ckpt_path", "last"] if (run.folder / "checkpoints" / "last.ckpt").is_file() else []
    try:
        run_training([*arguments, *resume])
    finally:
        state["seconds"] += time.perf_counter() - began
        with new_text_file(marker, overwrite=True) as write:
            write([json.dumps(state, indent=1) + "\n"])


def training_arguments(run: "Run", args: argparse.Namespace, kind: str) -> list[str]:
    """The command line of a run: the stage's file, the objective's, the size, and what the comparison decides."""
    folder, stage = configs_folder(), STAGES[kind]
    section = size_settings(args.size).get(stage, {}) if args.size else {}
    result = [
        "fit",
        "--config",
        str(folder / f"{stage}.yaml"),
        "--config",
        str(run.settings),
    ]
    result += ["--config", json.dumps(section)] if section else []
    result += [f"--run_dir={run.folder}", f"--model.autoencoder={args.path}", *run.flags]
    result += [] if run.start is None else [f"--model.initialise_from={run.start}"]
    result += [f"--model.teacher={run.start}"] if run.taught else []
    result += text_data(args) if kind == "text" else image_data(args)
    if args.device != "auto":
        result.append(f"--trainer.accelerator={'gpu' if args.device == 'cuda' else 'cpu'}")
    lengths = {"max_steps": run.steps, "val_check_interval": run.steps, "log_every_n_steps": min(50, run.steps)}
    result += [f"--trainer.{name}={value}" for name, value in lengths.items()]
    result += [f"--model.optimizer.warmup_steps={min(100, run.steps // 5)}", "--diagnostics.every_n_validations=0"]
    return result


def text_data(args: argparse.Namespace) -> list[str]:
    """Flags of the text that the model was trained on, cut as it reads it, or of another."""
    from fewstep.bundle import ModelBundle

    identity = ModelBundle.from_pretrained(args.path).identity
    flags = [f"--data.source={args.source or identity.source}", f"--data.block_size={identity.block_size}"]
    flags.append(f"--data.cache_dir={args.cache_dir}")
    return flags + ([f"--data.max_documents={args.max_documents}"] if args.max_documents else [])


def image_data(args: argparse.Namespace) -> list[str]:
    """Flags of the images that the model was trained on."""
    from fewstep.model import SavedModel

    identity = SavedModel.from_pretrained(args.path, kind="images").identity
    images = {"class_path": f"fewstep.data.{identity.source}", "init_args": identity.source_config}
    return [f"--data.images={json.dumps(images)}"]


def text_bench(args: argparse.Namespace) -> "TextBench":
    """Scorer, real text and protocol, as ``fewstep evaluate`` makes them. Raises ``UserError``."""
    from fewstep.bundle import ModelBundle
    from fewstep.cli.sweeping import held_out_text, make_protocol, make_scorer, prepared_text
    from fewstep.evaluation import token_counts
    from fewstep.evaluation.compare_bench import TextBench
    from fewstep.evaluation.processes import Processes
    from fewstep.evaluation.sweep_measures import TrainText
    from fewstep.evaluation.train_text import train_stream
    from fewstep.evaluation.yardsticks import yardsticks
    from fewstep.readouts import READOUTS
    from fewstep.registry import resolve

    device = pick_device(args.device)
    bundle = ModelBundle.from_pretrained(args.path).to(device)
    scorer, corpus = make_scorer(args, bundle, device), prepared_text(args, bundle, Processes())
    held_out, parts = held_out_text(args, corpus), {"parallel": "readout", "head": "head"}
    readouts = (
        comma_parts(args.readout, "readout") if args.readout else [n for n, p in parts.items() if p in bundle.parts()]
    )
    for name in readouts:
        bundle.require(resolve(READOUTS, name, "readout").part, source=args.path)
    return TextBench(
        bundle,
        scorer,
        make_protocol(args, bundle, scorer, corpus, {}),
        yardsticks(bundle, held_out, token_counts(corpus.train, len(bundle.tokenizer)), args.samples, seed=0),
        TrainText(train_stream(corpus.train), bundle.identity.block_size),
        held_out,
        readouts,
        device=device,
        batch_size=args.batch_size,
        cci_examples=args.cci_examples,
    )


def image_bench(args: argparse.Namespace, base: Path) -> "ImageBench":
    """The same for images: everything follows from the flow ``base`` that all started from."""
    from fewstep.evaluation.compare_bench import ImageBench

    device = pick_device(args.device)
    return ImageBench(base, args.samples, range(args.seeds), device=device, batch_size=args.batch_size)


def compared(
    bench: "Bench",
    runs: "Sequence[Run]",
    steps: Sequence[int],
    strengths: Sequence[float],
    out: Path,
    made_with: dict[str, Any],
) -> "Comparison":
    """Measure what has no row yet, and set every objective against the plain flow. ``made_with``: provenance."""
    from fewstep.evaluation.comparison import measured
    from fewstep.report.contrast import Comparison, with_gains

    seconds = {run.folder: json.loads((run.folder / MARKER).read_text())["seconds"] for run in runs}
    with ProgressBar("measuring", "setting") as progress:
        rows = measured(bench, runs, seconds, steps, strengths, out, progress, made_with)
    if rows[0].quality is None:
        raise UserError("the real data have no quality to compare with: nothing of them was scored")
    caption = f"{bench.caption} {CAPTION}"
    return Comparison(bench.kind, bench.quality.name, rows[0].quality, caption, with_gains(rows, bench.quality))


def tell(comparison: "Comparison", out: Path, made_with: dict[str, Any]) -> None:
    """Print the table, and write it, its data with what it was ``made_with``, and its picture."""
    from fewstep.report.contrast import comparison_markdown, comparison_text, write_comparison_figure

    print(comparison_text(comparison))
    result = json.dumps({**comparison.to_dict(), "provenance": made_with}, indent=1)
    for name, text in ((TABLE, comparison_markdown(comparison)), (RESULT, result)):
        with new_text_file(out / name, overwrite=True) as write:
            write([text + "\n"])
    write_comparison_figure(comparison, out / PICTURE)
    print(f"\ntable     {out / TABLE}, {out / RESULT}\nrows      {out}/*/rows.jsonl\npicture   {out / PICTURE}")


def contrast(args: argparse.Namespace) -> int:
    """Draw finished comparisons beside each other. Returns the exit code; raises ``UserError``."""
    from fewstep.report.contrast import read_comparison, write_contrast_figure

    file = args.out or Path("contrast.png")
    write_contrast_figure([read_comparison(folder / RESULT) for folder in args.contrast], file)
    print(f"picture   {file}")
    return 0


def say(text: str) -> None:
    """One line of the command's own."""
    print(f"[compare] {text}", flush=True)
