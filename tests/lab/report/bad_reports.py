"""Bad input of ``fewstep report``, case by case, as :mod:`tests.cli.bad_inputs` has it for the other commands.

``mine`` is a whole run of made figures; :func:`write_runs` puts it into the current folder, and damaged ones beside it.
"""

import json
import math
from dataclasses import replace
from pathlib import Path

from tests.cli.bad_inputs import Case
from tests.lab.report.runs_on_disk import PROTOCOL, sweep_row, whole_run

LOG = "flow/csv/version_0/metrics.csv"


def write_runs(folder: Path) -> None:
    """The runs that the cases name; of a damaged one a file or two."""
    whole_run(folder / "mine")
    other = replace(PROTOCOL, block_size=16)
    two = [sweep_row("parallel", steps, "0", 50.0, protocol=one) for steps, one in ((4, PROTOCOL), (8, other))]
    odd, no_hash = ({**two[0].to_dict(), name: value} for name, value in (("nfe", [5]), ("protocol", {"a": math.nan})))
    damaged: dict[str, dict[str, bytes]] = {
        "torn_table": {"table.json": b"{"},
        "deep_table": {"table.json": b'{"rows": ' + b"[" * 100_000},
        "no_rows": {"evaluation/rows.jsonl": b"no row\n"},
        "two_protocols": {"rows.jsonl": "".join(json.dumps(row.to_dict()) + "\n" for row in two).encode()},
        "odd_row": {"rows.jsonl": json.dumps(odd).encode() + b"\n"},
        "no_hash": {"rows.jsonl": json.dumps(no_hash).encode() + b"\n"},
        "a_list_diagnosed": {"diagnostics.json": b"[]"},
        "of_sound_diagnosed": {"diagnosis/diagnostics.json": b'{"kind": "sound"}'},
        "long_number": {"diagnostics.json": b'{"kind": ' + b"1" * 5_000 + b"}"},
        "huge_number": {
            "flow/diagnostics.jsonl": b'{"step": 1, "results": {}, "table": {"a": {"value": 1' + b"0" * 400 + b"}}}\n"
        },
        "wide_samples": {"samples.txt": "wide".encode("utf-16")},
        "no_step": {LOG: b"epoch,loss\n1,2\n"},
        "odd_loss": {LOG: b"step,train/loss\n1,low\n"},
        "no_traces": {"samples.txt": b"a text", "traces.json": b'{"model": "abc"}'},
        "endless_traces": {"samples.txt": b"a text", "traces.json": _traces(b"Infinity")},
        "deep_traces": {"samples.txt": b"a text", "traces.json": _traces(b"[" * 100_000)},
        "junk_weights": {"model/denoiser.safetensors": b"junk"},
        "deep_weights": {"model/denoiser.safetensors": (100_000).to_bytes(8, "little") + b"[" * 100_000},
        "no_identity": {"model/config.json": b'{"parts": {}}'},
        "no_parts": {"model/config.json": b'{"format": 2, "parts": {"readout": 1}, "identity": {}, "sha256": {}}'},
    }
    for name, files in damaged.items():
        for file, content in files.items():
            (folder / name / file).parent.mkdir(parents=True, exist_ok=True)
            (folder / name / file).write_bytes(content)


def _traces(num_samples: bytes) -> bytes:
    return b'{"vocabulary": [], "token_ids": [], "num_samples": ' + num_samples + b"}"


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
FILES = [
    Case("report there.jsonl", "there.jsonl, line 1, column 1", "take it away"),
    Case("report torn_table", "table.json, line 1, column 2", "take it away"),
    Case("report deep_table", "table.json", "take it away"),
    Case("report mine no_rows", "rows.jsonl, line 1", "take it away"),
    Case("report two_protocols", "rows.jsonl", "protocol"),
    Case("report odd_row", "rows.jsonl, line 1", "evaluate anew"),
    Case("report no_hash", "rows.jsonl", "evaluate anew"),
    Case("report a_list_diagnosed", "the whole is []", "expected an object"),
    Case("report of_sound_diagnosed", 'kind is "sound"', "'text' or 'images'"),
    Case("report of_sound_diagnosed/diagnosis/diagnostics.json", 'kind is "sound"', "'text' or 'images'"),
    Case("report long_number", "diagnostics.json", "take it away"),
    Case("report huge_number", "table.a.value is 1000", "expected a finite number"),
    Case("report wide_samples", "samples.txt is not UTF-8", "make the file anew"),
    Case("report no_step", "metrics.csv", "expected a log of fewstep's training"),
    Case("report odd_loss", "'low'", "expected a number"),
    Case("report no_traces --device cpu", "traces.json has no 'vocabulary'", "delete it"),
    Case("report endless_traces --device cpu", "traces.json holds no traces", "delete it"),
    Case("report deep_traces --device cpu", "traces.json holds no traces", "delete it"),
    Case("report junk_weights", "denoiser.safetensors", "make the model anew"),
    Case("report deep_weights", "denoiser.safetensors", "make the model anew"),
    Case("report no_identity", "does not describe a fewstep model", "give a folder written by save_pretrained"),
    Case("report no_parts", "model/config.json: parts.readout", "should be an object"),
]
CASES = [*OPTIONS, *PLACES, *FILES]
