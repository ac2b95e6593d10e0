"""``fewstep evaluate``: one model over steps, re-injection, readouts and controls, under one protocol."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from jsonargparse.typing import NonNegativeInt

from fewstep.cli.common import StudyOptions, comma_rules, folder_beside, sweep_temperatures, write_tables
from fewstep.cli.output import check_writable, make_folder, progress_bar
from fewstep.cli.parser import comma_numbers, comma_parts, parse_options
from fewstep.errors import UserError
from fewstep.locking import FolderLock
from fewstep.provenance import provenance

if TYPE_CHECKING:
    from fewstep.evaluation.rows import Row
    from fewstep.evaluation.sweep import Plan
    from fewstep.evaluation.texts import Sampling


@dataclass(kw_only=True)
class AxisOptions:
    """Axes: every combination is a row; lists have commas between their values.

    Args:
        steps: numbers of steps.
        reinjection: strengths with commas between, and rules as in fewstep sample, such as linear:1,0.2, with blanks
            between.
        readout: parallel, mask_predict, head, head_off (the head without its view of earlier tokens).
        noise_temperature: factors on a step's old noise; below 1 is colder.
        noise: fresh, reused (re-injected noise drawn in every step, or once).
        snap: none, and rules as in fewstep sample.
        commit_tokens: tokens written at a time after --prompt_tokens, with all before them known; 0: a block at once.
        guidance: scales of classifier-free guidance on what is given; 1 for none.
    """

    steps: list[int] | int | str = "1,2,4,8,16,32"
    reinjection: list[float | str] = field(default_factory=lambda: ["0,0.5,1"])
    readout: list[str] | str = "parallel,head"
    noise_temperature: list[float] | float | str = 1.0
    noise: list[str] | str = "fresh"
    snap: list[str] | str = "none"
    commit_tokens: list[int] | int | str = "0"
    guidance: list[float] | float | str = 1.0


@dataclass(kw_only=True)
class EvaluateOptions(AxisOptions, StudyOptions):
    """Sample a model in many settings and score them under one protocol.

    Args:
        model: a model folder, or a .ckpt file of the flow or a later stage.
        out: folder for rows, table and pictures; left out, evaluation/ beside the model, or evaluation_prompt16/ and
            the like.
        prompt_tokens: give the model this many first tokens of held-out texts; it writes the rest, and that is scored.
        infill_tokens: give it held-out texts but for a gap of this many tokens in the middle.
        heat: what --matched_entropy heats where a readout takes the likeliest tokens: noise, or tokens, drawn then.
        mauve: measure MAUVE against held-out text too: needs the extra fewstep[mauve] and many samples.
        wandb: log table and pictures to wandb too.
    """

    model: str
    out: Path | None = None
    prompt_tokens: NonNegativeInt = 0
    infill_tokens: NonNegativeInt = 0
    heat: Literal["noise", "tokens"] = "noise"
    mauve: bool = False
    wandb: bool = False


def main(argv: list[str]) -> int:
    """Evaluate as ``argv`` says and return the exit code. Several processes (``torchrun``) share the rows."""
    options = parse_options("evaluate", EvaluateOptions, argv)
    from fewstep.evaluation.processes import Processes
    from fewstep.evaluation.rows import RowFile
    from fewstep.evaluation.sweep import Sweep
    from fewstep.evaluation.texts import flow_groups
    from fewstep.metrics.text import mauve_package_version
    from fewstep.model import SavedModel
    from fewstep.pipeline import TextGenerator

    parts = {"prompt_tokens": options.prompt_tokens, "infill_tokens": options.infill_tokens}
    if all(parts.values()):
        raise UserError(f"--{' and --'.join(parts)} are given: choose one")
    names = ["evaluation", *(f"{name.removesuffix('_tokens')}{count}" for name, count in parts.items() if count)]
    folder = folder_beside(options.model, "_".join(names)) if options.out is None else options.out
    samplings, temperatures = all_samplings(options), sweep_temperatures(options.matched_entropy)
    readouts, heats_tokens = comma_parts(options.readout, "readout"), options.heat == "tokens"
    check_writable(folder)
    if options.mauve:
        mauve_package_version()
    if options.wandb:
        from fewstep.training.tracking import check_wandb

        check_wandb()
    lock = FolderLock(folder, "--out")
    with Processes.join() as processes, ExitStack() as locked:
        if processes.is_first and folder.is_dir():  # in use: said before a model is loaded
            locked.enter_context(lock)
        bundle = SavedModel.from_pretrained(options.model, allow=options.allowed, kind="text")
        bundle = bundle.to(options.pick_device())
        for sampling in samplings:  # one that does not fit the model is refused before its text is read
            TextGenerator(bundle).sampler(sampling.num_steps, sampling.reinjection)
        study = options.study(bundle, mauve=options.mauve, **parts)
        flows = flow_groups(bundle, samplings, readouts, temperatures, known=study.known, heats_tokens=heats_tokens)
        groups = [*study.yardsticks(temperatures=temperatures), *flows]
        plan = study.plan(groups, provenance=provenance("evaluate", argv))
        if processes.is_first:
            make_folder(folder)
            locked.enter_context(lock)
        with progress_bar("evaluating", "row") as progress:
            rows = Sweep(plan, processes).run(RowFile(folder / "rows.jsonl"), progress)
        if processes.is_first:
            write_results(rows, plan, study.scorer.name, folder, wandb=options.wandb)
    return 0


def all_samplings(options: AxisOptions) -> "list[Sampling]":
    """Every combination from noise to latents, the number of steps changing fastest, checked before a model is read."""
    from fewstep.evaluation.texts import FRESH, NO_SNAP, REUSED, Sampling
    from fewstep.samplers import parse_snap

    snaps, noises = comma_parts(options.snap, "snap"), comma_parts(options.noise, "noise")
    if unknown := [noise for noise in noises if noise not in (FRESH, REUSED)]:
        raise UserError(f"noise is {unknown[0]!r}: expected some of {FRESH}, {REUSED}")
    try:
        for snap in set(snaps) - {NO_SNAP}:
            parse_snap(snap)
    except ValueError as error:
        raise UserError(str(error)) from None
    combinations = product(
        comma_rules(options.reinjection),
        comma_numbers(options.noise_temperature, "noise_temperature", float),
        noises,
        snaps,
        comma_numbers(options.commit_tokens, "commit_tokens", int, least=0),
        comma_numbers(options.guidance, "guidance", float, least=0),
        comma_numbers(options.steps, "steps", int, least=1),
    )
    return [
        Sampling(num_steps, rule, temperature, noise=noise, snap=snap, commit_tokens=commit, guidance=guidance)
        for rule, temperature, noise, snap, commit, guidance, num_steps in combinations
    ]


def write_results(rows: "Sequence[Row]", plan: "Plan", scorer: str, folder: Path, *, wandb: bool) -> None:
    """Write the tables and the pictures, and print the tables."""
    from fewstep.evaluation.charts import NFE, SECONDS, score_pictures
    from fewstep.evaluation.frontier import write_frontier
    from fewstep.evaluation.pictures import write_pictures
    from fewstep.evaluation.rows import table_lines

    plain, _, text = write_tables(rows, plan.caption, plan.columns, folder)
    pictures = {f"pareto_{name}": folder / f"pareto_{name}.png" for name in ("nfe", "seconds")}
    for cost, file in zip((NFE, SECONDS), pictures.values(), strict=True):
        write_pictures(score_pictures(plain, cost, scorer), file)
    write_frontier(rows, scorer, folder / "frontier.png")
    print(f"{text}\n\nrows      {folder}/rows.jsonl\ntable     {folder}/table.md\npictures  {folder}/*.png")
    if wandb:
        from fewstep.training.tracking import log_study

        heading, *lines = table_lines(plain, plan.columns)
        figures = {f"sweep_pictures/{name}": file for name, file in pictures.items()}
        logged = log_study(folder, {"sweep": (heading, lines)}, figures)
        print("wandb     " + (str(folder / "wandb") if logged else "nothing logged: WANDB_MODE is disabled"))
