"""A report in wandb: verdict and tables, and its pictures."""

from pathlib import Path
from tempfile import TemporaryDirectory

from lightning.pytorch.loggers import WandbLogger

from fewstep.report.blocks import Chart, Table
from fewstep.report.html_page import Report
from fewstep.report.pictures import write_picture
from fewstep.training.loggers import default_loggers, finish_wandb

PICTURES, TABLES, VERDICT = "report_pictures", "report_tables", "report/verdict"
VERDICT_COLUMNS = ("run", "question", "state", "figure", "threshold", "finding", "advice")


def log_report(report: Report, folder: Path) -> bool:
    """Log ``report`` as a run of its own kept in ``folder``: the verdict as a table and in the run's summary, every
    table, and every picture that is made of lines or bars.

    False where ``WANDB_MODE`` is disabled and nothing was logged: see :mod:`fewstep.training.loggers`.
    """
    for logger in default_loggers(folder):
        if isinstance(logger, WandbLogger):
            _log(report, logger)
            finish_wandb()
            return True
    return False


def verdict_lines(report: Report) -> list[list[str]]:
    """A line a run and question, in the columns of :data:`VERDICT_COLUMNS`."""
    return [
        [
            verdict.name,
            finding.rule.question,
            finding.outcome.state,
            finding.outcome.figure,
            finding.rule.threshold.text(),
            finding.outcome.finding,
            finding.outcome.advice,
        ]
        for verdict in report.verdicts
        for finding in verdict.findings
    ]


def _log(report: Report, logger: WandbLogger) -> None:
    logger.log_table(VERDICT, columns=list(VERDICT_COLUMNS), data=verdict_lines(report))
    blocks = [block for section in report.sections for block in section.blocks]
    for table in (block for block in blocks if isinstance(block, Table)):
        logger.log_table(f"{TABLES}/{table.name}", columns=list(table.heading), data=[list(row) for row in table.rows])
    with TemporaryDirectory() as scratch:
        for chart in (block for block in blocks if isinstance(block, Chart) and block.picture is not None):
            assert chart.picture is not None
            file = Path(scratch) / f"{chart.name}.png"
            write_picture(chart.picture, file)
            logger.log_image(f"{PICTURES}/{chart.name}", [str(file)])
    logger.experiment.summary.update(
        {
            f"report/{verdict.name}/{finding.rule.key}": finding.outcome.state
            for verdict in report.verdicts
            for finding in verdict.findings
        }
    )
