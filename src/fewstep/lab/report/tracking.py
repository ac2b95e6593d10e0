"""A report as tables, figures and a summary, for experiment trackers. A file of its own: the page does not need it."""

from pathlib import Path

from fewstep.evaluation.pictures import write_picture
from fewstep.lab.report.blocks import Chart, Table
from fewstep.lab.report.html_page import Report

COLUMNS = ("run", "question", "state", "figure", "threshold", "finding", "advice")

TableData = tuple[tuple[str, ...], list[list[str]]]


def tables(report: Report) -> dict[str, TableData]:
    """Columns and rows by name: the verdict, and every table of the page."""
    verdict = [
        [
            verdict.name,
            finding.rule.question,
            finding.outcome.state,
            finding.outcome.figure,
            finding.rule.threshold_text,
            finding.outcome.finding,
            finding.outcome.advice,
        ]
        for verdict in report.verdicts
        for finding in verdict.findings
    ]
    blocks = [block for section in report.sections for block in section.blocks if isinstance(block, Table)]
    pages = {
        f"report_tables/{block.name}": (tuple(block.heading), [list(row) for row in block.rows]) for block in blocks
    }
    return {"report/verdict": (COLUMNS, verdict), **pages}


def pictures(report: Report, folder: Path) -> dict[str, Path]:
    """Every figure of lines or bars, drawn into ``folder``, by name."""
    files: dict[str, Path] = {}
    for chart in (block for section in report.sections for block in section.blocks if isinstance(block, Chart)):
        if chart.picture is not None:
            file = files[f"report_pictures/{chart.name}"] = folder / f"{chart.name}.png"
            write_picture(chart.picture, file)
    return files


def summary(report: Report) -> dict[str, str]:
    """The state of each question of each run."""
    return {
        f"report/{verdict.name}/{finding.rule.key}": finding.outcome.state
        for verdict in report.verdicts
        for finding in verdict.findings
    }
