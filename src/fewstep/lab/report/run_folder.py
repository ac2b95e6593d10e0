"""A run, or what there is of one, read from its folder for a report."""

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from fewstep.errors import UserError
from fewstep.evaluation.protocol import same_protocol
from fewstep.evaluation.sweep_row import SweepRow
from fewstep.evaluation.table import GenerationTable
from fewstep.lab.report.diagnosed import Diagnosed, read_diagnosis, read_training_line
from fewstep.lab.report.strict_json import Node, read_json, read_json_lines, read_text
from fewstep.lab.report.training_curves import STAGES, StageLog, read_stage_logs
from fewstep.registry import check_types
from fewstep.storage import Manifest, read_manifest

DIAGNOSIS, ROWS = "diagnostics.json", "rows.jsonl"
NOTHING = "model/, table.json, diagnosis/diagnostics.json, evaluation/rows.jsonl or */csv"
LONGEST_HEADER_BYTES = 1 << 26


@dataclass(frozen=True)
class RunReport:
    """What a run holds; what is missing is None or empty.

    ``name`` for headings and ``source`` as the user wrote it. ``manifest`` of the model, ``sizes`` the numbers stored
    in each of its parts. ``diagnoses`` in the order in which figures are looked up: the diagnosis, then what training
    left. ``rows`` of a sweep and ``table`` of the quickstart. ``samples`` is the text of samples.txt.
    """

    name: str
    source: str
    manifest: Manifest | None = None
    sizes: Mapping[str, int] | None = None
    diagnoses: tuple[Diagnosed, ...] = ()
    stages: tuple[StageLog, ...] = ()
    table: GenerationTable | None = None
    rows: tuple[SweepRow, ...] = ()
    samples: str | None = None

    @property
    def kind(self) -> str:
        """ "text" or "images"."""
        told = next((one.kind for one in self.diagnoses if one.kind is not None), None)
        return told or ("text" if self.manifest is None else str(self.manifest.identity.get("kind", "text")))

    @property
    def block_size(self) -> int | None:
        """Tokens in a text, where that is known."""
        if self.table is not None:
            return self.table.block_size
        told = [None if self.manifest is None else self.manifest.identity.get("block_size") or None]
        told += [(one.protocol or {}).get("block_length") for one in self.diagnoses]
        return next((size for size in told if isinstance(size, int)), None)

    @property
    def is_decoder_alone(self) -> bool:
        """Whether there is a diagnosis and nothing else."""
        return bool(self.diagnoses) and not any((self.manifest, self.stages, self.table, self.rows, self.samples))


def read_run(path: str | Path) -> RunReport:
    """Read a run's folder, a folder that holds some of its files, or a diagnosis alone (its folder or JSON file).

    Raises ``UserError`` in one line, naming file and key, where something is broken, and where there is nothing.
    """
    folder = Path(path).expanduser()
    if folder.is_file():
        return RunReport(_name(folder.parent), str(path), diagnoses=(read_diagnosis(read_json(folder)),))
    if not folder.is_dir():
        raise UserError(f"{path} does not exist: give a run's folder, or a diagnosis")
    if (folder / "config.json").is_file() and any(folder.glob("*.safetensors")):
        raise UserError(f"{path} is a model: give the run's folder that it lies in, {folder.resolve().parent}")
    run = RunReport(
        name=_name(folder),
        source=str(path),
        manifest=_manifest(folder / "model"),
        sizes=_sizes(folder / "model"),
        diagnoses=_diagnoses(folder),
        stages=read_stage_logs(folder),
        table=_table(folder / "table.json"),
        rows=_rows(folder),
        samples=read_text(folder / "samples.txt") if (folder / "samples.txt").is_file() else None,
    )
    if not any((run.manifest, run.diagnoses, run.stages, run.table, run.rows, run.samples)):
        raise UserError(f"{path} holds nothing of a run: expected some of {NOTHING}")
    return run


def read_runs(paths: list[str]) -> tuple[RunReport, ...]:
    """Each of ``paths`` by :func:`read_run`; runs of the same name are told apart by a number.

    Raises ``UserError`` where the same place is given twice.
    """
    places = [Path(path).expanduser().resolve() for path in paths]
    if twice := [path for index, path in enumerate(paths) if places[index] in places[:index]]:
        raise UserError(f"{twice[0]} is given twice: give each run once")
    runs: list[RunReport] = []
    for path in paths:
        run = read_run(path)
        taken = {one.name for one in runs}
        names = [run.name, *(f"{run.name} ({number})" for number in range(2, len(paths) + 2))]
        runs.append(RunReport(**{**vars(run), "name": next(name for name in names if name not in taken)}))
    return tuple(runs)


def _name(folder: Path) -> str:
    """The last name that says something: a diagnosis lies in a folder called diagnosis, beside its model."""
    resolved = folder.resolve()
    name = resolved.parent.name if resolved.name == "diagnosis" and resolved.parent.name else resolved.name
    return name.replace("$", "").lstrip("_") or "run"  # what a picture would take for a formula, or leave out


def _manifest(folder: Path) -> Manifest | None:
    return read_manifest(folder) if (folder / "config.json").is_file() else None


def _sizes(folder: Path) -> dict[str, int] | None:
    """Numbers in each part's file: from its header, so that nothing large is read."""
    files = sorted(folder.glob("*.safetensors"))
    return {file.stem: _stored_numbers(file) for file in files} if files else None


def _stored_numbers(file: Path) -> int:
    broken = UserError(f"{file} is no safetensors file: it is broken or cut off; make the model anew")
    try:
        with file.open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            header = json.loads(stream.read(length)) if length <= LONGEST_HEADER_BYTES else None
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror or error}") from None
    except (struct.error, ValueError, RecursionError):
        raise broken from None
    if not isinstance(header, dict):
        raise broken
    total = 0
    for name, tensor in Node(file, header).items():
        if name != "__metadata__":
            count = 1
            for size in tensor.child("shape").elements():
                count *= size.count()
            total += count
    return total


def _diagnoses(folder: Path) -> tuple[Diagnosed, ...]:
    found = []
    for file in (folder / "diagnosis" / DIAGNOSIS, folder / DIAGNOSIS):
        if file.is_file():
            found.append(read_diagnosis(read_json(file)))
    for stage, file in [(folder.resolve().name, folder / "diagnostics.jsonl")] + [
        (name, folder / name / "diagnostics.jsonl") for name in STAGES
    ]:
        lines = read_json_lines(file) if file.is_file() else []
        if lines:
            found.append(read_training_line(lines[-1], stage.replace("_", " ")))
    return tuple(found)


def _table(file: Path) -> GenerationTable | None:
    if not file.is_file():
        return None
    node = read_json(file)
    for row in node.child("rows").elements():
        for key in ("name", "readout", "num_steps", "reinjection", "nfe", "num_samples", "distinct_2", "examples"):
            row.child(key)
        row.child("perplexity").number()
        row.child("entropy_nats").number()
        row.child("perplexity_interval").child("low").number()
        row.child("perplexity_interval").child("high").number()
    try:
        return GenerationTable.from_dict(node.value)
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{file} is no table of this fewstep version ({error}): take it away") from None


def _rows(folder: Path) -> tuple[SweepRow, ...]:
    for file in (folder / "evaluation" / ROWS, folder / ROWS):
        if file.is_file():
            lines = read_json_lines(file)
            rows = tuple(_row(node) for node in lines)
            if rows:
                try:
                    same_protocol(node.value for node in lines)
                except UserError as error:
                    raise UserError(f"{file}: {error}") from None
                except ValueError:  # NaN, which Python's reader takes, and no protocol was ever hashed with
                    raise UserError(f"{file}: a protocol with a number that is not finite: evaluate anew") from None
            return rows
    return ()


def _row(node: Node) -> SweepRow:
    node.child("setting").child("name").text()
    node.child("entropy_nats").number()
    if node.has("perplexity"):
        node.child("perplexity").number()
    try:
        row = SweepRow.from_dict(node.value)
        check_types(row)
        return row
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        why = f"({error})" if isinstance(error, KeyError) else "(values of another kind)"
        raise UserError(
            f"{node.file}, {node.path}, is no row of this fewstep version {why}: evaluate anew into another folder"
        ) from None
