"""``fewstep compare``: objectives on one latent space at equal training compute, in one table and one picture."""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from jsonargparse.typing import PositiveInt

from fewstep.cli.common import StudyOptions, comma_rules, sweep_temperatures, write_tables
from fewstep.cli.output import make_folder, progress_bar
from fewstep.cli.parser import comma_numbers, comma_parts, parse_options
from fewstep.errors import UserError
from fewstep.provenance import provenance

if TYPE_CHECKING:
    from fewstep.evaluation.sweep import Plan
    from fewstep.evaluation.text_plan import TextStudy
    from fewstep.lab.compare.plans import Models

ROWS, NAME = "rows.jsonl", "compare"


@dataclass(kw_only=True)
class CompareOptions(StudyOptions):
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
        reinjection: strengths with commas between, and rules as in fewstep sample, such as cosine:1,0, with blanks
            between.
        readout: some of parallel, mask_predict, head, head_off; left out, parallel, and head if the model has one.
        size: debug, hour, base or a YAML file, for the network and its training.
    """

    model: str = field(default="", metadata={"positional": True})
    out: Path | None = None
    contrast: list[Path] = field(default_factory=list)
    objectives: list[str] | str | None = None
    budget: PositiveInt = 2100
    teacher_steps: PositiveInt = 700
    steps: list[int] | int | str = "1,2,4,8"
    reinjection: list[float | str] = field(default_factory=lambda: ["0,1"])
    readout: list[str] | str | None = None
    size: str | None = None


def main(argv: list[str]) -> int:
    """Compare as ``argv`` says and return the exit code; an interrupted comparison resumes."""
    options = parse_options("compare", CompareOptions, argv)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if options.contrast:
        from fewstep.lab.compare.tables import write_contrast

        files = [folder / ROWS for folder in options.contrast]
        write_contrast(files, file := options.out or Path("contrast.png"))
        print(f"picture   {file}")
        return 0
    if not options.model:
        raise UserError("no model given: give the folder of a text model or an image model")
    steps = list(dict.fromkeys(comma_numbers(options.steps, "steps", int, least=1)))
    rules = list(dict.fromkeys(comma_rules(options.reinjection)))
    temperatures = sweep_temperatures(options.matched_entropy)
    from fewstep.lab.compare.plans import Models, image_plan, text_plan
    from fewstep.lab.compare.runs import planned, train, training_arguments
    from fewstep.model import kind_of
    from fewstep.objectives import OBJECTIVES

    out, kind, recipe = options.out or Path("runs/compare"), kind_of(options.model), provenance("compare", argv)
    names = list(OBJECTIVES) if options.objectives is None else comma_parts(options.objectives, "objectives")
    teacher, *runs = planned(names, kind, out, budget=options.budget, teacher_steps=options.teacher_steps, steps=steps)
    make_folder(out)
    text = text_study(options) if kind == "text" else None  # what is missing shows before the training
    for number, run in enumerate((teacher, *runs), 1):
        steps_and_passes = f"{run.steps:,} steps, {run.passes:,.0f} passes each"
        print(f"[compare] training {number} of {len(runs) + 1}, {run.name}: {steps_and_passes}", flush=True)
        if not train(run, training_arguments(run, options, kind), options.model):
            print(f"[compare] {run.name} is done already, see {run.folder}", flush=True)
    models = Models(runs, steps, rules, kind, options.pick_device())
    if text is not None:
        plan = text_plan(text[0], models, text[1], temperatures, recipe)
    else:
        seeds = range(options.seeds)
        plan = image_plan(teacher.model, models, options.samples, seeds, recipe, options.batch_size)
    measure(plan, models, out)
    return 0


def text_study(options: CompareOptions) -> "tuple[TextStudy, list[str]]":
    """Scorer, real text and protocol, as ``fewstep evaluate`` makes them, and the readouts. Raises ``UserError``."""
    from fewstep.model import SavedModel
    from fewstep.readouts import READOUTS
    from fewstep.registry import resolve

    bundle = SavedModel.from_pretrained(options.model, allow=options.allowed, kind="text").to(options.pick_device())
    own = [name for name, part in {"parallel": "readout", "head": "head"}.items() if part in bundle.parts()]
    readouts = comma_parts(options.readout, "readout") if options.readout else own
    for name in readouts:
        bundle.require(resolve(READOUTS, name, "readout").part, source=options.model)
    return options.study(bundle), readouts


def measure(plan: "Plan", models: "Models", out: Path) -> None:
    """Measure what has no row yet; write and print the table, and draw the picture."""
    from fewstep.evaluation.rows import RowFile
    from fewstep.evaluation.sweep import Sweep
    from fewstep.lab.compare.tables import CAPTION, COLUMNS, with_gains, write_contrast

    with progress_bar("measuring", "row") as progress:
        rows = with_gains(Sweep(plan).run(RowFile(out / ROWS), progress))
    caption = "\n".join([f"{plan.caption} {CAPTION}", *models.ruled_out()])
    _, _, text = write_tables(rows, caption, COLUMNS, out, NAME)
    write_contrast([out / ROWS], out / f"{NAME}.png")
    print(f"{text}\n\ntable     {out / NAME}.md, {out / NAME}.csv\nrows      {out / ROWS}\npicture   {out / NAME}.png")
