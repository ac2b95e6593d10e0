"""Bad input of ``fewstep report``, case by case, as :mod:`tests.cli.bad_inputs` has it for the other commands.

``mine`` is a whole run of made-up figures; :func:`write_runs` puts it into the current folder, and a run for each of
:data:`BROKEN`, which has that one file.
"""

from pathlib import Path
from typing import NamedTuple

from tests.cli.bad_inputs import Case
from tests.lab.report.runs_on_disk import whole_run, write_run

LOG = "flow/csv/version_0/metrics.csv"
TRACES = (
    '{"model": "m", "seed": 0, "num_samples": %s, "num_tokens": 1, "block_size": 1, "vocabulary": %s, '
    '"token_ids": [], "paths": []}'
)
DIAGNOSIS = (
    '{"kind": "text", "model": "a", "n": 2, "left_out": {}, "num_examples": 4, "num_positions": 1, "seed": 0, '
    '"results": {"a": {"name": "a" %s}}}'
)
SERIES = ', "curves": {"c": {"label": "c", "x": [1], "y": [%s], "low": null, "high": null}}'
ESTIMATE = '{"value": %s, "interval": null, "num_examples": 4}'
ROWS = ', "rows": [{"name": "a", "unit": "", "note": "", "estimate": ' + ESTIMATE + "}]"
DEEP = "[" * 100_000


class Broken(NamedTuple):
    """A ``file`` of a run with broken ``content``; the refusal names the file, ``value`` and ``advice``."""

    run: str
    file: str
    content: bytes
    value: str
    advice: str = "re-create or delete the file"


def _text(run: str, file: str, content: str, value: str, advice: str = "re-create or delete the file") -> Broken:
    return Broken(run, file, content.encode(), value, advice)


BROKEN = (
    _text("no_rows", "evaluation/rows.jsonl", "no row\n", "line 1", "this fewstep version"),
    _text("deep_rows", "rows.jsonl", DEEP + "\n", "line 1", "this fewstep version"),
    _text("a_list", "diagnostics.json", "[]", "content is '[]'"),
    _text("torn", "diagnostics.json", "{", "Invalid JSON"),
    _text("deep", "diagnostics.json", DEEP, "content is"),
    _text("empty", "diagnosis/diagnostics.json", "{}", "kind is missing"),
    _text(
        "of_sound",
        "diagnosis/diagnostics.json",
        (DIAGNOSIS % "").replace("text", "sound"),
        "kind is 'sound'",
        "'text' or 'images'",
    ),
    _text("long_number", "diagnostics.json", '{"num_examples": ' + "1" * 5_000 + "}", "diagnostics.json"),
    _text("text_value", "diagnostics.json", DIAGNOSIS % (ROWS % '"much"'), "rows.0.estimate.value is 'much'"),
    _text("a_true", "diagnostics.json", DIAGNOSIS % (SERIES % "true"), "curves.c.y.0 is 'True'", "valid number"),
    Broken("wide_log", LOG, "wide".encode("utf-16"), "metrics.csv is not UTF-8"),
    _text("no_step", LOG, "epoch,loss\n1,2\n", "has no column step", "delete it"),
    _text("odd_loss", LOG, "step,train/loss\n1,low\n", "'low'", "delete the file"),
    _text("no_traces", "traces.json", '{"model": "abc"}', "seed is missing"),
    _text("endless_traces", "traces.json", TRACES % ("Infinity", "[]"), "num_samples is 'inf'"),
    _text("odd_traces", "traces.json", TRACES % (1, "[1]"), "vocabulary.0 is '1'", "valid string"),
    _text("junk_weights", "model/denoiser.safetensors", "junk", "denoiser.safetensors", "save the model again"),
    _text("no_identity", "model/config.json", '{"parts": {}}', "does not describe a fewstep model", "save_pretrained"),
)


def write_runs(folder: Path) -> None:
    """The runs that the cases name."""
    whole_run(folder / "mine")
    for broken in BROKEN:
        write_broken(folder, broken)


def write_broken(folder: Path, broken: Broken) -> None:
    """The run of that name, with its broken file."""
    run = folder / "broken" / broken.run
    file = run / broken.file
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(broken.content)
    if broken.file == "traces.json":
        write_run(run, logs=True)


MINE = "report mine --traces 0"
OPTIONS = [
    Case("report", "runs", "see fewstep report --help"),
    Case("report mine --pages 2", "--pages 2", "see fewstep report --help"),
    Case("report mine --traces -1", "-1", "traces"),
    Case("report mine --traces few", "few", "traces"),
    Case("report mine --device abacus", "abacus", "device"),
    Case(f"{MINE} --title ' '", "--title", "give a heading"),
    Case(f"{MINE} --title ''", "''", "give a value"),
]
PLACES = [
    Case("report nowhere", "nowhere does not exist", "give a run's folder"),
    Case("report ''", "''", "give"),
    Case("report ~nobody_is_called_so/run", "~nobody_is_called_so/run", "write the whole path"),
    Case(f"report {'n' * 300}", "nnn", "give"),
    Case("report no_model", "no_model holds nothing of a run", "expected some of model/"),
    Case("report {model}", "is a model", "give the run's folder"),
    Case("report mine no_model/../mine", "no_model/../mine is given twice", "give each run once"),
    Case(f"{MINE} --out none/page.html", "none", "make it first"),
    Case(f"{MINE} --out no_model", "no_model", "give the name of a file"),
    Case(f"{MINE} --out there.jsonl", "there.jsonl", "--overwrite"),
    Case(f"{MINE} --out ''", "''", "give"),
]
FILES = [Case(f"report broken/{one.run} --device cpu", one.value, one.advice) for one in BROKEN]
FILES.append(Case("report there.jsonl", "there.jsonl", "delete the file"))
CASES = [*OPTIONS, *PLACES, *FILES]
