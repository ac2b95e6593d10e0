"""``fewstep compare``: objectives on one latent space at equal training compute, in one table and one picture."""

import json
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jsonargparse.typing import PositiveInt

from fewstep.cli.common import DeviceOptions, ScoringOptions, TextOptions
from fewstep.cli.output import make_folder, progress_bar, write_text
from fewstep.cli.parser import comma_numbers, comma_parts, parse_options
from fewstep.errors import UserError
from fewstep.provenance import provenance
from fewstep.settings import configs_folder, size_sections

if TYPE_CHECKING:
    from fewstep.lab.compare.backends import ImageBench, TextBench
    from fewstep.lab.compare.comparison import Bench, Run
    from fewstep.lab.compare.contrast import Comparison

STAGES = {"text": "flow", "images": "image_flow"}
MARKER, RESULT, TABLE, PICTURE = "training.json", "compare.json", "compare.md", "compare.png"
CAPTION = (
    "Stiffness peak in 1 / time; passes: forward passes an example of a batch in the objective's own training, a "
    "backward pass counted as two; training s: its wall time with start and validation; beats the flow by: the plain "
    "flow's figure at the same setting over this one, with a 95 % interval of a paired bootstrap."
)


@dataclass(kw_only=True)
class CompareOptions(ScoringOptions, TextOptions, DeviceOptions):
    """Train objectives on one model's latents and compare their samples.

    Args:
        model: folder of a text model, or of an image model.
        out: folder for everything; left out, runs/compare. Of a contrast the file.
        contrast: folders of finished comparisons, drawn beside each other.
        objectives: names of configs/objectives with commas between, or dotted paths such as my_package.Mine; left
            out, all.
        budget: forward passes per example of a batch that each objective's training may take.
        teacher_steps: training steps of the flow that all start from.
        steps: numbers of sampling steps K.
        reinjection: strengths with commas between.
        readout: some of parallel, head, head_off; left out, those that the model has.
        size: debug, hour, base or a YAML file, for the network and its training.
    """

    model: str = field(default="", metadata={"positional": True})
    out: Path | None = None
    contrast: list[Path] = field(default_factory=list)
    objectives: list[str] | str | None = None
    budget: PositiveInt = 2100
    teacher_steps: PositiveInt = 700
    steps: list[int] | int | str = "1,2,4,8"
    reinjection: list[float] | float | str = "0,1"
    readout: list[str] | str | None = None
    size: str | None = None


def main(argv: list[str]) -> int:
    """Compare as ``argv`` says and return the exit code; an interrupted comparison resumes."""
    options = parse_options("compare", CompareOptions, argv)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if options.contrast:
        return contrast(options.contrast, options.out or Path("contrast.png"))
    if not options.model:
        raise UserError("no model given: give the folder of a text model or an image model")
    steps = list(dict.fromkeys(comma_numbers(options.steps, "steps", int)))
    strengths = list(dict.fromkeys(comma_numbers(options.reinjection, "reinjection", float)))
    if min(steps) < 1 or not 0 <= min(strengths) <= max(strengths) <= 1:
        raise UserError(
            f"--steps {options.steps} --reinjection {options.reinjection}: expected K >= 1 and strengths in [0, 1]"
        )
    from fewstep.model import kind_of

    out, kind = options.out or Path("runs/compare"), kind_of(options.model)
    plan = planned_runs(options, kind, out, steps)
    recipe = provenance("compare", argv)
    make_folder(out)
    bench: Bench | None = text_bench(options) if kind == "text" else None  # what is missing shows before the training
    for number, run in enumerate(plan, 1):
        say(f"training {number} of {len(plan)}, {run.name}: {run.steps:,} steps, {run.passes:,.0f} passes an example")
        train(run, options, kind)
    bench = bench or image_bench(options, plan[0].folder / "model")
    write_results(compared(bench, plan[1:], steps, strengths, out, recipe), out, recipe)
    return 0


def planned_runs(options: CompareOptions, kind: str, out: Path, steps: Sequence[int]) -> "list[Run]":
    """The teacher and what starts from it. Raises ``UserError``."""
    from fewstep.lab.compare.comparison import planned
    from fewstep.objectives import OBJECTIVES

    names = list(OBJECTIVES) if options.objectives is None else comma_parts(options.objectives, "objectives")
    base = configs_folder() / f"{STAGES[kind]}.yaml"
    return planned(
        names, settings_of, base, out, budget=options.budget, teacher_steps=options.teacher_steps, steps=steps
    )


def settings_of(name: str) -> Path:
    """The settings file of a registered objective."""
    return configs_folder() / "objectives" / f"{name}.yaml"


def train(run: "Run", options: CompareOptions, kind: str) -> None:
    """Train one run in this process, resuming an interrupted one; nothing if it is done.

    Raises ``UserError`` if its folder holds a run of other settings.
    """
    arguments = training_arguments(run, options, kind)
    marker, settings = run.folder / MARKER, json.loads(json.dumps([*arguments, os.path.abspath(options.model)]))
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
        write_text(marker, json.dumps(state, indent=1) + "\n")


def training_arguments(run: "Run", options: CompareOptions, kind: str) -> list[str]:
    """The command line of a run: the stage's file, the objective's, the size, and what the comparison decides."""
    result = ["fit", "--config", str(configs_folder() / f"{STAGES[kind]}.yaml"), "--config", str(run.settings)]
    section = size_sections(options.size).get(STAGES[kind]) if options.size else None
    result += ["--config", json.dumps(section)] if section else []  # not --size: settings of a run show what changed
    result += [f"--run_dir={run.folder}", f"--model.autoencoder={options.model}", *run.flags]
    result += [] if run.start is None else [f"--model.initialise_from={run.start}"]
    result += [f"--model.teacher={run.start}"] if run.taught else []
    result += text_data(options) if kind == "text" else image_data(options)
    if options.device != "auto":
        result.append(f"--trainer.accelerator={'gpu' if options.device == 'cuda' else 'cpu'}")
    lengths = {"max_steps": run.steps, "val_check_interval": run.steps, "log_every_n_steps": min(50, run.steps)}
    result += [f"--trainer.{name}={value}" for name, value in lengths.items()]
    result += [f"--model.optimizer.warmup_steps={min(100, run.steps // 5)}", "--diagnostics.every_n_validations=0"]
    return result


def text_data(options: CompareOptions) -> list[str]:
    """Flags of the text that the model was trained on, cut as it reads it, or of another."""
    from fewstep.model import SavedModel

    identity = SavedModel.from_pretrained(options.model, allow=options.allowed, kind="text").identity
    flags = [f"--data.source={options.source or identity.source}", f"--data.block_size={identity.block_size}"]
    flags.append(f"--data.cache_dir={options.cache_dir}")
    return flags + ([f"--data.max_documents={options.max_documents}"] if options.max_documents else [])


def image_data(options: CompareOptions) -> list[str]:
    """Flags of the images that the model was trained on."""
    from fewstep.model import SavedModel

    identity = SavedModel.from_pretrained(options.model, kind="images").identity
    images = {"class_path": f"fewstep.lab.images.{identity.source}", "init_args": identity.source_config}
    return [f"--data.images={json.dumps(images)}"]


def text_bench(options: CompareOptions) -> "TextBench":
    """Scorer, real text and protocol, as ``fewstep evaluate`` makes them. Raises ``UserError``."""
    from fewstep.cli.sweeping import held_out_text, make_protocol, make_scorer, prepared_text
    from fewstep.evaluation.baselines import token_counts
    from fewstep.evaluation.processes import Processes
    from fewstep.evaluation.sweep_measures import TrainText
    from fewstep.evaluation.train_text import train_stream
    from fewstep.evaluation.yardsticks import yardsticks
    from fewstep.lab.compare.backends import TextBench
    from fewstep.model import SavedModel
    from fewstep.readouts import READOUTS
    from fewstep.registry import resolve

    device = options.pick_device()
    bundle = SavedModel.from_pretrained(options.model, allow=options.allowed, kind="text").to(device)
    scorer, corpus = make_scorer(options, bundle, device), prepared_text(options, bundle, Processes())
    held_out = held_out_text(options, corpus)
    own = [name for name, part in {"parallel": "readout", "head": "head"}.items() if part in bundle.parts()]
    readouts = comma_parts(options.readout, "readout") if options.readout else own
    for name in readouts:
        bundle.require(resolve(READOUTS, name, "readout").part, source=options.model)
    return TextBench(
        bundle,
        scorer,
        make_protocol(options, bundle, scorer, corpus, {}),
        yardsticks(bundle, held_out, token_counts(corpus.train, corpus.report.vocabulary), options.samples, seed=0),
        TrainText(train_stream(corpus.train), bundle.identity.block_size),
        held_out,
        readouts,
        device=device,
        batch_size=options.batch_size,
        cci_examples=options.cci_examples,
    )


def image_bench(options: CompareOptions, base: Path) -> "ImageBench":
    """The same for images: everything follows from the flow ``base`` that all started from."""
    from fewstep.lab.compare.backends import ImageBench

    device = options.pick_device()
    return ImageBench(base, options.samples, range(options.seeds), device=device, batch_size=options.batch_size)


def compared(
    bench: "Bench",
    runs: "Sequence[Run]",
    steps: Sequence[int],
    strengths: Sequence[float],
    out: Path,
    recipe: dict[str, Any],
) -> "Comparison":
    """Measure what has no row yet, and set every objective against the plain flow. ``recipe``: provenance."""
    from fewstep.lab.compare.comparison import measured
    from fewstep.lab.compare.contrast import Comparison, with_gains

    seconds = {run.folder: json.loads((run.folder / MARKER).read_text())["seconds"] for run in runs}
    with progress_bar("measuring", "setting") as progress:
        rows = measured(bench, runs, seconds, steps, strengths, out, progress, recipe)
    if rows[0].quality is None:
        raise UserError("the real data have no quality to compare with: nothing of them was scored")
    caption = f"{bench.caption} {CAPTION}"
    return Comparison(bench.kind, bench.quality.name, rows[0].quality, caption, with_gains(rows, bench.quality))


def write_results(comparison: "Comparison", out: Path, recipe: dict[str, Any]) -> None:
    """Write the table, its data with their provenance, and its picture; print the table."""
    from fewstep.lab.compare.contrast import comparison_markdown, comparison_text, write_comparison_figure

    write_text(out / TABLE, comparison_markdown(comparison) + "\n")
    write_text(out / RESULT, json.dumps({**comparison.to_dict(), "provenance": recipe}, indent=1) + "\n")
    write_comparison_figure(comparison, out / PICTURE)
    print(comparison_text(comparison))
    print(f"\ntable     {out / TABLE}, {out / RESULT}\nrows      {out}/*/rows.jsonl\npicture   {out / PICTURE}")


def contrast(folders: Sequence[Path], file: Path) -> int:
    """Draw finished comparisons beside each other; returns the exit code."""
    from fewstep.lab.compare.contrast import read_comparison, write_contrast_figure

    write_contrast_figure([read_comparison(folder / RESULT) for folder in folders], file)
    print(f"picture   {file}")
    return 0


def say(text: str) -> None:
    """One line of the command's own."""
    print(f"[compare] {text}", flush=True)
