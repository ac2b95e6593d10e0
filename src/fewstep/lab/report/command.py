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
    from fewstep.lab.report.page import Report

FILE = "report.html"
VERDICT_COLUMNS = ("run", "question", "state", "figure", "threshold", "finding", "advice")


@dataclass(kw_only=True)
class ReportOptions(DeviceOptions):
    """Write one self-contained HTML page on runs: verdict, curves, tables, texts, and a viewer of tokens by step.

    Args:
        runs: a run's folder (as fewstep quickstart writes), a folder with some of its files, or a diagnosis (its folder
            or its JSON file); several are compared.
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
    first = Path(options.runs[0])
    beside = first if first.is_dir() else first.parent
    out = options.out or (beside / FILE if len(options.runs) == 1 else Path(FILE))
    from fewstep.evaluation.columns import aligned_columns
    from fewstep.lab.report.page import make_report, page_html, side_by_side
    from fewstep.lab.report.run import read_runs
    from fewstep.lab.report.traces import traces_of_run

    runs, traces = read_runs(options.runs), {}
    with new_text_file(out, overwrite=options.overwrite) as write:
        for run in runs if options.traces else ():
            with progress_bar(f"following samples of {run.name}", "trajectory") as progress:
                followed = traces_of_run(Path(run.path).expanduser(), options.traces, options.pick_device(), progress)
            if followed is not None:
                traces[run.name] = followed
        report = make_report(runs, title=options.title, traces=traces)
        write([page_html(report)])
    print("\n\n".join(verdict.to_text() for verdict in report.verdicts))
    if all(run.diagnosis is not None and run.diagnosis.protocol.get("name") for run in runs):
        for table in side_by_side(runs):  # of a protocol that fixes a short list of rows
            print(f"\n{aligned_columns([table.heading, *table.rows], (0,))}\n{table.caption}")
    print(f"\nreport    {out}")
    if options.wandb:
        log_to_wandb(report, out.resolve().parent)
    return 0


def log_to_wandb(report: "Report", folder: Path) -> None:
    """Log the verdict (as a table and in the summary), tables and charts, and say where they went."""
    from tempfile import TemporaryDirectory

    from fewstep.evaluation.pictures import write_picture
    from fewstep.lab.report.rules import threshold_text
    from fewstep.training.tracking import log_study

    findings = [(verdict.name, finding) for verdict in report.verdicts for finding in verdict.findings]
    verdict_rows = [
        (name, item.rule.question, item.state, item.figure, threshold_text(item.rule.threshold), item.text, item.advice)
        for name, item in findings
    ]
    tables = {f"report_tables/{t.name}": (t.heading, t.rows) for section in report.tables.values() for t in section}
    summary = {f"report/{name}/{finding.rule.key}": finding.state for name, finding in findings}
    with TemporaryDirectory() as scratch:
        pictures = {}
        for chart in (chart for section in report.charts.values() for chart in section):
            file = pictures[f"report_pictures/{chart.name}"] = Path(scratch) / f"{chart.name}.png"
            write_picture(chart.picture, file)
        logged = log_study(folder, {"report/verdict": (VERDICT_COLUMNS, verdict_rows), **tables}, pictures, summary)
    print(f"wandb     {folder / 'wandb'}" if logged else "wandb     nothing logged: WANDB_MODE is disabled")
