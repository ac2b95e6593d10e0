"""``fewstep evaluate``: one checkpoint over steps, re-injection, readout and controls, under one protocol."""

import argparse
import os
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fewstep.cli.arguments import OneLineParser, at_least_one
from fewstep.cli.axes import add_axes, axes_of
from fewstep.cli.diagnose import check_writable
from fewstep.cli.edge import first_speaks
from fewstep.cli.output import new_text_file
from fewstep.cli.progress import ProgressBar
from fewstep.cli.sweeping import RUN, make_sweep
from fewstep.errors import UserError
from fewstep.locking import folder_lock
from fewstep.provenance import provenance

if TYPE_CHECKING:
    from fewstep.evaluation.row_file import RowFile
    from fewstep.evaluation.sweep import Sweep
    from fewstep.evaluation.sweep_row import SweepRow

ROWS, TABLE = "rows.jsonl", "table.md"
PICTURES = ("pareto_nfe.png", "pareto_seconds.png")


def parser() -> argparse.ArgumentParser:
    """The options of the command."""
    result = OneLineParser("fewstep evaluate", "Sample a model in many settings and score them under one protocol.")
    result.add_argument("path", help="a model folder, or a .ckpt file of the flow or a later stage")
    add_axes(result)
    result.add_argument("--samples", type=at_least_one, default=128, help="texts a seed (default: %(default)s)")
    result.add_argument("--seeds", type=at_least_one, default=3, help="number of seeds, from 0 on (default: 3)")
    result.add_argument(
        "--scorer", default=RUN, help="run for the model's own language model, or a transformers folder or hub name"
    )
    result.add_argument(
        "--scorer_dtype",
        choices=("float32", "bfloat16", "float16"),
        default="float32",
        help="of a transformers scorer (default: %(default)s)",
    )
    result.add_argument("--out", type=Path, help="folder for rows, table and pictures; left out: beside the model")
    result.add_argument(
        "--cci_examples",
        type=int,
        default=8,
        help="samples on which the head's commitment is measured, 0 for none (default: %(default)s)",
    )
    result.add_argument(
        "--mauve",
        action="store_true",
        help="measure MAUVE against held-out text too: wants the extra fewstep[mauve] and many samples",
    )
    result.add_argument("--wandb", action="store_true", help="log table and pictures to wandb too")
    _add_data_options(result)
    return result


def _add_data_options(parser: argparse.ArgumentParser) -> None:
    """The real text, and how the machine is used."""
    parser.add_argument("--source", help="the text to compare with; left out: what the model was trained on")
    parser.add_argument("--text_field", default="text", help="field that holds the text (default: %(default)s)")
    parser.add_argument(
        "--max_documents", type=at_least_one, help="as in training, so that held-out text is held out here too"
    )
    parser.add_argument(
        "--no_pack",
        action="store_true",
        help="documents in blocks of their own, as in training with pack: false; blocks count to their first end",
    )
    parser.add_argument("--cache_dir", default="~/.cache/fewstep", help="folder for prepared text")
    parser.add_argument(
        "--batch_size", type=at_least_one, default=64, help="texts made at a time (default: %(default)s)"
    )
    parser.add_argument(
        "--device", choices=("auto", "cpu", "cuda"), default="auto", help="where models run (default: %(default)s)"
    )


def main(argv: list[str]) -> int:
    """Evaluate as ``argv`` says and return the exit code. Raises ``UserError`` for whatever a user can mend.

    Of several processes (``torchrun`` or any other start of them) the first alone speaks.
    """
    return first_speaks(lambda: evaluate(parser().parse_args(argv), provenance("evaluate", argv)))


def evaluate(args: argparse.Namespace, made_with: dict[str, Any] | None = None) -> int:
    """The command itself; its rows carry ``made_with``."""
    from fewstep.evaluation.processes import Processes

    folder = default_folder(Path(args.path)) if args.out is None else args.out.expanduser()
    axes = axes_of(args)
    if args.cci_examples < 0:
        raise UserError(f"--cci_examples {args.cci_examples}: expected a whole number of at least 0")
    check_writable(folder)
    if args.wandb:
        from fewstep.training.loggers import check_wandb

        check_wandb()
    with Processes.join() as processes, ExitStack() as locked:
        sweep = make_sweep(args, axes, processes, made_with)
        if processes.is_first:
            make_folder(folder)
            locked.enter_context(folder_lock(folder, "--out"))
        rows = run(sweep, folder)
        if processes.is_first:
            tell(rows, sweep, folder, wandb=args.wandb)
    return 0


def default_folder(path: Path) -> Path:
    """Beside the model: a model folder holds nothing but the model."""
    return path.expanduser().resolve().parent / "evaluation"


def make_folder(folder: Path) -> None:
    """Make ``folder``, as the work begins. Raises ``UserError`` where that cannot be, or it is closed to writing."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write into {folder}: {error.strerror}; choose another folder by --out") from None
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UserError(f"cannot write into {folder}: it is closed to writing; choose another folder by --out")


def run(sweep: "Sweep", folder: Path) -> list["SweepRow"]:
    """Measure what is not in the folder's file yet, row by row; all its rows, in the sweep's order first."""
    from fewstep.evaluation.row_file import RowFile
    from fewstep.evaluation.sweep_row import SweepRow

    file, settings = RowFile(folder / ROWS, SweepRow), sweep.settings()
    rows = sweep.finished(file)
    if sweep.processes.is_first:
        tell_torn(file)
    done = {row.setting for row in rows}
    with ProgressBar("evaluating", "row") as progress:
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


def tell_torn(file: "RowFile[Any]") -> None:
    """Say on stderr where ``file`` ends in half a line: what it was the start of is made again."""
    if torn := file.torn_bytes():
        print(
            f"fewstep: {file.file}: the last line was cut off after {torn} bytes; that row is made again",
            file=sys.stderr,
        )


def tell(rows: Sequence["SweepRow"], sweep: "Sweep", folder: Path, *, wandb: bool) -> None:
    """Print the table, and write it and the pictures."""
    from fewstep.evaluation.sweep_row import sweep_markdown, sweep_text, table_lines
    from fewstep.report.pareto import NFE, SECONDS, write_pareto_figure

    caption = sweep.caption()
    print(sweep_text(rows, caption))
    with new_text_file(folder / TABLE, overwrite=True) as write:
        write([sweep_markdown(rows, caption)])
    pictures = {Path(name).stem: folder / name for name in PICTURES}
    for cost, file in zip((NFE, SECONDS), pictures.values(), strict=True):
        write_pareto_figure(rows, cost, file, scorer=sweep.scorer.name)
    print(f"\nrows      {folder / ROWS}\ntable     {folder / TABLE}\npictures  {folder / 'pareto_*.png'}")
    if wandb:
        from fewstep.training.loggers import log_study

        heading, *lines = table_lines(rows)
        figures = {f"sweep_pictures/{name}": file for name, file in pictures.items()}
        logged = log_study(folder, {"sweep": (heading, lines)}, figures)
        print("wandb     " + (str(folder / "wandb") if logged else "nothing logged: WANDB_MODE is disabled"))
