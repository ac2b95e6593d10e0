"""``fewstep evaluate``: one model over steps, re-injection, readouts and controls, under one protocol."""

import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fewstep.cli.common import folder_beside
from fewstep.cli.main import rank_zero_errors
from fewstep.cli.output import check_writable, make_folder, progress_bar, write_text
from fewstep.cli.parser import parse_options
from fewstep.cli.sweeping import SweepOptions, make_sweep, sampler_settings
from fewstep.locking import FolderLock
from fewstep.provenance import provenance

if TYPE_CHECKING:
    from fewstep.evaluation.old_sweep import Sweep
    from fewstep.evaluation.row_file import RowFile
    from fewstep.evaluation.sweep_row import SweepRow

ROWS, TABLE = "rows.jsonl", "table.md"
PICTURES = ("pareto_nfe.png", "pareto_seconds.png")


@dataclass(kw_only=True)
class EvaluateOptions(SweepOptions):
    """Sample a model in many settings and score them under one protocol.

    Args:
        out: folder for rows, table and pictures; left out, evaluation/ beside the model.
        wandb: log table and pictures to wandb too.
    """

    out: Path | None = None
    wandb: bool = False


def main(argv: list[str]) -> int:
    """Evaluate as ``argv`` says and return the exit code. Several processes (``torchrun``) share the rows."""
    return rank_zero_errors(lambda: evaluate(parse_options("evaluate", EvaluateOptions, argv), argv))


def evaluate(options: EvaluateOptions, argv: list[str]) -> int:
    """The command itself; ``argv`` is named by the provenance of its rows."""
    from fewstep.evaluation.processes import Processes

    folder = folder_beside(options.model, "evaluation") if options.out is None else options.out
    settings = sampler_settings(options)
    check_writable(folder)
    if options.wandb:
        from fewstep.training.tracking import check_wandb

        check_wandb()
    with Processes.join() as processes, ExitStack() as locked:
        sweep = make_sweep(options, settings, processes, provenance("evaluate", argv))
        if processes.is_first:
            make_folder(folder)
            locked.enter_context(FolderLock(folder, "--out"))
        rows = run(sweep, folder)
        if processes.is_first:
            write_results(rows, sweep, folder, wandb=options.wandb)
    return 0


def run(sweep: "Sweep", folder: Path) -> list["SweepRow"]:
    """Measure what is not in the folder's file yet, row by row; all its rows, in the sweep's order first."""
    from fewstep.evaluation.row_file import RowFile
    from fewstep.evaluation.sweep_row import SweepRow

    file, settings = RowFile(folder / ROWS, SweepRow), sweep.settings()
    rows = sweep.finished(file)
    if sweep.processes.is_first:
        report_torn(file)
    done = {row.setting for row in rows}
    with progress_bar("evaluating", "row") as progress:
        count = len(done & set(settings))
        if sweep.processes.is_first:
            progress(count, len(settings), "done before" if count else "")
        for row in sweep.rows(done):
            file.append(row)
            rows.append(row)
            count += 1
            progress(count, len(settings), row.setting.label())
    place = {setting: index for index, setting in enumerate(settings)}
    return sorted(rows, key=lambda row: place.get(row.setting, len(place)))


def report_torn(file: "RowFile[Any]") -> None:
    """Say on stderr if ``file`` ends in half a line, whose row is measured again."""
    if torn := file.torn_bytes():
        print(
            f"fewstep: {file.file}: the last line was cut off after {torn} bytes; its row is measured again",
            file=sys.stderr,
        )


def write_results(rows: Sequence["SweepRow"], sweep: "Sweep", folder: Path, *, wandb: bool) -> None:
    """Write the table and the pictures, and print the table."""
    from fewstep.evaluation.pareto import NFE, SECONDS, write_pareto_figure
    from fewstep.evaluation.sweep_row import sweep_markdown, sweep_text, table_lines

    caption = sweep.caption()
    write_text(folder / TABLE, sweep_markdown(rows, caption))
    pictures = {Path(name).stem: folder / name for name in PICTURES}
    for cost, file in zip((NFE, SECONDS), pictures.values(), strict=True):
        write_pareto_figure(rows, cost, file, scorer=sweep.scorer.name)
    print(sweep_text(rows, caption))
    print(f"\nrows      {folder / ROWS}\ntable     {folder / TABLE}\npictures  {folder / 'pareto_*.png'}")
    if wandb:
        from fewstep.training.tracking import log_study

        heading, *lines = table_lines(rows)
        figures = {f"sweep_pictures/{name}": file for name, file in pictures.items()}
        logged = log_study(folder, {"sweep": (heading, lines)}, figures)
        print("wandb     " + (str(folder / "wandb") if logged else "nothing logged: WANDB_MODE is disabled"))
