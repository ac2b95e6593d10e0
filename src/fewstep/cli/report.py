"""``fewstep report``: one page on a run, or on several side by side."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from fewstep.cli.arguments import OneLineParser, at_least_one
from fewstep.cli.device import pick_device
from fewstep.cli.output import new_text_file
from fewstep.cli.progress import ProgressBar
from fewstep.errors import UserError

if TYPE_CHECKING:
    from fewstep.evaluation.traces import Traces
    from fewstep.report.html_page import Report
    from fewstep.report.run_folder import RunReport

FILE = "report.html"
NUM_TRACES = 6


def parser() -> argparse.ArgumentParser:
    """The options of the command."""
    result = OneLineParser(
        "fewstep report",
        "Write one self-contained HTML page on runs: a verdict with its figures, curves, tables, texts, and a viewer "
        "of tokens step by step.",
    )
    result.add_argument(
        "runs",
        nargs="+",
        metavar="RUN",
        help="a run's folder (as fewstep quickstart writes), a folder with some of its files, or a diagnosis "
        "(its folder or diagnostics.json); several are compared",
    )
    result.add_argument(
        "-o", "--out", type=Path, help=f"the page; left out: {FILE} in the run's folder, or here for several runs"
    )
    result.add_argument("--overwrite", action="store_true", help="replace an earlier page")
    result.add_argument("--title", help="heading of the page; left out: the runs' names")
    traces = result.add_mutually_exclusive_group()
    traces.add_argument(
        "--traces",
        type=at_least_one,
        default=NUM_TRACES,
        metavar="N",
        help="samples that the viewer follows, kept in RUN/traces.json (default: %(default)s)",
    )
    traces.add_argument("--no_traces", action="store_true", help="leave the viewer out: no model is loaded")
    result.add_argument(
        "--device", choices=("auto", "cpu", "cuda"), default="auto", help="where traces are made (default: %(default)s)"
    )
    result.add_argument("--wandb", action="store_true", help="log verdict, tables and pictures to wandb too")
    return result


def main(argv: list[str]) -> int:
    """Write the page as ``argv`` says and return the exit code. Raises ``UserError`` for whatever a user can mend."""
    args = parser().parse_args(argv)
    if args.title is not None and not args.title.strip():
        raise UserError("--title is empty: give a heading, or leave it out")
    out = args.out or default_file(args.runs)
    from fewstep.report.html_page import make_report, page_html
    from fewstep.report.run_folder import read_runs
    from fewstep.report.verdict import verdict_text

    runs = read_runs(args.runs)
    with new_text_file(out, overwrite=args.overwrite) as write:
        traces = {} if args.no_traces else collect(runs, args.traces, pick_device(args.device))
        report = make_report(runs, title=args.title, traces=traces)
        write([page_html(report)])
    print("\n\n".join(map(verdict_text, report.verdicts)))
    print(f"\nreport    {out}")
    if args.wandb:
        log_to_wandb(report, out.expanduser().resolve().parent)
    return 0


def default_file(runs: list[str]) -> Path:
    """In the one run's folder, or beside the one file; in the working folder where there are several."""
    first = Path(runs[0]).expanduser()
    if len(runs) > 1:
        return Path(FILE)
    return (first if first.is_dir() else first.parent) / FILE


def collect(runs: "tuple[RunReport, ...]", count: int, device: str) -> "dict[str, Traces]":
    """Traces of every run that has a text model, or that kept some. Raises ``UserError`` for a broken model."""
    from fewstep.evaluation.traces_file import traces_of_run

    found = {}
    for run in runs:
        if not Path(run.source).expanduser().is_dir():
            continue
        with ProgressBar(f"following samples of {run.name}", "trajectory") as progress:
            traces = traces_of_run(run.source, num_samples=count, device=device, progress=progress)
        if traces is not None:
            found[run.name] = traces
    return found


def log_to_wandb(report: "Report", folder: Path) -> None:
    """Log the report, and say where it went."""
    from tempfile import TemporaryDirectory

    from fewstep.report import tracking
    from fewstep.training.loggers import log_study

    with TemporaryDirectory() as scratch:
        figures = tracking.pictures(report, Path(scratch))
        logged = log_study(folder, tracking.tables(report), figures, tracking.summary(report))
    if logged:
        print(f"wandb     {folder / 'wandb'}")
    else:
        print("wandb     nothing logged: WANDB_MODE is disabled")
