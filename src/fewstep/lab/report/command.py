"""``fewstep report``: one page on a run, or on several side by side."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from jsonargparse.typing import NonNegativeInt

from fewstep.cli.common import DeviceOptions
from fewstep.cli.output import new_text_file, progress_bar
from fewstep.cli.parser import parse_options
from fewstep.errors import UserError

if TYPE_CHECKING:
    from fewstep.lab.report.html_page import Report
    from fewstep.lab.report.run_folder import RunReport
    from fewstep.lab.report.traces import Traces

FILE = "report.html"


@dataclass(kw_only=True)
class ReportOptions(DeviceOptions):
    """Write one self-contained HTML page on runs: verdict, curves, tables, texts, and a viewer of tokens by step.

    Args:
        runs: a run's folder (as fewstep quickstart writes), a folder with some of its files, or a diagnosis (its folder
            or diagnostics.json); several are compared.
        out: the page; left out, report.html in the run's folder, or here for several runs.
        overwrite: replace an earlier page.
        title: heading of the page; left out, the runs' names.
        traces: samples that the viewer follows, kept in RUN/traces.json; 0 leaves the viewer out and loads no model.
        wandb: log verdict, tables and pictures to wandb too.
    """

    runs: list[str]
    out: Path | None = None
    overwrite: bool = False
    title: str | None = None
    traces: NonNegativeInt = 6
    wandb: bool = False


def main(argv: list[str]) -> int:
    """Write the page as ``argv`` says; returns the exit code."""
    options = parse_options("report", ReportOptions, argv)
    if options.title is not None and not options.title.strip():
        raise UserError("--title is empty: give a heading, or leave it out")
    out = options.out or default_file(options.runs)
    from fewstep.lab.report.html_page import make_report, page_html
    from fewstep.lab.report.run_folder import read_runs
    from fewstep.lab.report.verdict import verdict_text

    runs = read_runs(options.runs)
    with new_text_file(out, overwrite=options.overwrite) as write:
        traces = collect(runs, options.traces, options.pick_device()) if options.traces else {}
        report = make_report(runs, title=options.title, traces=traces)
        write([page_html(report)])
    print("\n\n".join(map(verdict_text, report.verdicts)))
    print(f"\nreport    {out}")
    if options.wandb:
        log_to_wandb(report, out.resolve().parent)
    return 0


def default_file(runs: list[str]) -> Path:
    """In the one run's folder, or beside the one file; in the working folder where there are several."""
    first = Path(runs[0])
    if len(runs) > 1:
        return Path(FILE)
    return (first if first.is_dir() else first.parent) / FILE


def collect(runs: "tuple[RunReport, ...]", count: int, device: str) -> "dict[str, Traces]":
    """Traces of every run that has a text model or saved traces."""
    from fewstep.lab.report.traces_file import traces_of_run

    found = {}
    for run in runs:
        if not Path(run.source).is_dir():
            continue
        with progress_bar(f"following samples of {run.name}", "trajectory") as progress:
            traces = traces_of_run(run.source, num_samples=count, device=device, progress=progress)
        if traces is not None:
            found[run.name] = traces
    return found


def log_to_wandb(report: "Report", folder: Path) -> None:
    """Log the report, and say where it went."""
    from tempfile import TemporaryDirectory

    from fewstep.lab.report import tracking
    from fewstep.training.tracking import log_study

    with TemporaryDirectory() as scratch:
        figures = tracking.pictures(report, Path(scratch))
        logged = log_study(folder, tracking.tables(report), figures, tracking.summary(report))
    if logged:
        print(f"wandb     {folder / 'wandb'}")
    else:
        print("wandb     nothing logged: WANDB_MODE is disabled")
