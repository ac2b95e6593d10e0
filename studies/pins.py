"""Pin what the package computes, so that a rewrite can be checked against the code that it replaces.

    python studies/pins.py write FOLDER [--only NAME,...]   run every command below, write FOLDER/pins.json
    python studies/pins.py compare FOLDER_A FOLDER_B [--tolerance 1e-5]   print what differs; exit 1 if anything does

All runs are debug size, seed 0, one thread, CPU. The commands are in `COMMANDS`: after a rename, change one line there.
The names of pinned values (keys of JSON, columns of CSV) may change too: a value whose name is gone counts as the same
if another new name of the same document holds it.

A weight file is pinned as a multiset of tensors: each is (dtype, shape, SHA-256 of its bytes, root mean square) without
its name, and the file's digest is the SHA-256 of the sorted list. Equal digests mean equal bits whatever the parts are
called. Where digests differ, the root mean squares are compared under the tolerance.

A number passes when |a - b| <= tolerance * max(|a|, 0.01), a text when it is equal.
"""

import argparse
import contextlib
import csv
import hashlib
import json
import math
import os
import re
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
os.environ |= {"WANDB_MODE": "disabled", "HF_HUB_OFFLINE": "1"}

import torch
from safetensors.torch import load_file
from torch import Tensor

import fewstep

ROOT = Path(fewstep.__file__).parents[2]
CONFIGS, FIXTURES = ROOT / "configs", ROOT / "tests" / "fixtures"
FIT = "train fit --config {configs}/{stage}.yaml --size debug --trainer.log_every_n_steps=1 --run_dir={runs}/{name}"
SHORT = "--trainer.max_steps=8 --trainer.val_check_interval=4 --diagnostics.every_n_validations=0"
FLOW = "--model.autoencoder={runs}/quickstart/autoencoder/model --data.cache_dir={runs}/cache"
OBJECTIVE = f"{FIT} {SHORT} {FLOW}".replace("{stage}.yaml", "flow.yaml --config {configs}/objectives/{name}.yaml")
STUDENT = f"{OBJECTIVE} --model.initialise_from={{runs}}/flow_matching/model"
TAUGHT = f"{STUDENT} --model.teacher={{runs}}/flow_matching/model"
FIT_SHORT = f"{FIT} {SHORT}"
SAMPLE = "sample {runs}/quickstart/model --num_samples 4 --seed 3 --device cpu --output {runs}/{name}.jsonl"
OLD_FORMAT = "sample {fixtures}/model_v1 --num_samples 2 --seed 3 --steps 4 --device cpu --output {runs}/{name}.jsonl"
CACHE = "--cache_dir {runs}/cache --device cpu"

# Name and command line. The run folder, or the samples, are named after the command.
COMMANDS = [
    ("quickstart", "quickstart --size debug --out {runs}/quickstart --num_samples 16 --cache_dir {runs}/cache"),
    (
        "evaluate",
        "evaluate {runs}/quickstart/model --samples 8 --seeds 2 --steps 1,4 --reinjection 0,0.5 cosine:1,0 "
        f"--out {{runs}}/evaluate --max_documents 40 {CACHE}",
    ),
    (
        "diagnose",
        "diagnose {runs}/quickstart/model --effort full --examples 8 --positions 2 --max_documents 40 "
        f"--out {{runs}}/diagnose {CACHE}",
    ),
    ("sample_parallel", f"{SAMPLE} --steps 4"),
    ("sample_head", f"{SAMPLE} --steps 4 --readout head"),
    ("sample_head_off", f"{SAMPLE} --steps 4 --readout head --head_context off --top_p 0.9"),
    ("sample_half", f"{SAMPLE} --steps 8 --reinjection 0.5"),
    ("sample_listed", f"{SAMPLE} --steps 3 --reinjection 0,0.3,1"),
    ("sample_cosine", f"{SAMPLE} --steps 8 --reinjection cosine:1,0"),
    ("sample_ancestral", f"{SAMPLE} --steps 8 --reinjection ancestral:1"),
    ("sample_position", f"{SAMPLE} --steps 8 --reinjection by_position:1"),
    ("sample_elf", f"{SAMPLE} --steps 8 --reinjection elf:1.5"),
    ("sample_reused", f"{SAMPLE} --steps 8 --reinjection 1 --noise reused"),
    ("sample_cold", f"{SAMPLE} --steps 8 --noise_temperature 0.8 --temperature 1"),
    ("sample_heun", f"{SAMPLE} --steps 4 --solver heun"),
    ("sample_snap", f"{SAMPLE} --steps 4 --snap every"),
    ("sample_snap_last", f"{SAMPLE} --steps 4 --snap last:1"),
    ("sample_format_1", OLD_FORMAT),
    ("sample_format_1_head", f"{OLD_FORMAT} --readout head"),
    ("sample_format_1_checkpoint", OLD_FORMAT.replace("model_v1", "flow_v1.ckpt")),
    ("flow_matching", OBJECTIVE),
    ("consistency_training", STUDENT),
    ("lagrangian", STUDENT),
    ("mean_flow", STUDENT),
    ("semigroup", STUDENT),
    ("shortcut", STUDENT),
    ("consistency_distillation", TAUGHT),
    ("progressive", TAUGHT),
    ("reflow", TAUGHT),
    ("sample_mean_flow", SAMPLE.replace("quickstart/model", "mean_flow/model") + " --steps 2"),
    ("digits", FIT_SHORT),
    ("image_flow", f"{FIT_SHORT} --data.images=Digits --model.autoencoder={{runs}}/digits/model"),
    (
        "diagnose_images",
        "diagnose {runs}/digits/model --effort full --examples 8 --device cpu --out {runs}/diagnose_images",
    ),
]

PINNED = (
    "{name}.jsonl",
    "{name}/table.json",
    "{name}/rows.jsonl",
    "{name}/diagnostics.json",
    "{name}/csv/version_0/metrics.csv",
    "{name}/model/*.safetensors",
    "quickstart/*/csv/version_0/metrics.csv",
    "quickstart/*/checkpoints/last.ckpt",
)
"""Files whose values are pinned, where a command wrote them. Those of the stages count to the quickstart."""

VOLATILE = re.compile(
    r"second|provenance|version|created|date|memory|command|path|source|\bout\b|epoch|tokenizer$|(^|\.)model$"
)
"""Names whose values change from run to run or with the text of an option, matched anywhere in a dotted name."""

RENAMED = {
    **{"commitment": "head", "commit": "head", "commitment:1": "by_position:1", "listed:0,0.3,1": "0,0.3,1"},
    **{"snap": "every", "snap:last,1": "last:1"},
}
"""Old word -> new word, in the names of files and where it is a whole value."""
GONE = re.compile(
    r"trade_off|_K\d+_gamma|token_accuracy_noise|protocol_hash|yardsticks\.corpus|data\.fingerprint"
    r"|^results\..*(num_examples|scope|num_draws|num_predictions|name|times\.\d)$"
)
"""Names of values that changed on purpose: the trade-off table of a diagnosis, accuracies that moved from validation
to diagnostics, the fingerprint of a corpus with the hash of the protocols that hold it, and counts and names beside the
figures of a diagnosis, whose layout is new."""


ROW_AXES = ("name", "readout", "num_steps", "reinjection")
TABLES = re.compile(r"(quickstart/table\.json|evaluate/rows\.jsonl|quickstart/rows\.jsonl)$")
"""Files of rows, compared by the setting of a row; the quickstart's were in table.json once."""


def write(folder: Path, only: set[str]) -> int:
    """Run the commands and write ``pins.json``; a command that fails leaves its error there."""
    from fewstep.cli.main import main

    torch.set_num_threads(1)
    runs = folder / "runs"
    runs.mkdir(parents=True, exist_ok=True)
    pins: dict[str, dict[str, Any]] = {}
    with (folder / "log.txt").open("w") as log:
        for name, command in COMMANDS:
            if only and name not in only:
                continue
            stage = name if "{stage}" in command else ""
            places = {"runs": runs, "configs": CONFIGS, "fixtures": FIXTURES, "name": name, "stage": stage}
            argv = command.format(**places).split()
            print(f"{name} ...", file=sys.stderr, flush=True)
            print(f"\n== {' '.join(argv)}", file=log, flush=True)
            with contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
                try:
                    code: object = main(argv)
                except BaseException as error:
                    traceback.print_exc()
                    code = repr(error)
            values = dict(pinned_values(runs, name)) if code == 0 else {}
            if not values:
                values = {"failed": {"error": f"exit {code}, see log.txt"}}
                print(f"{name} FAILED ({code})", file=sys.stderr, flush=True)
            pins[name] = values
    (folder / "pins.json").write_text(json.dumps(pins, indent=1, ensure_ascii=False) + "\n")
    return int(any("failed" in values for values in pins.values()))


def pinned_values(runs: Path, name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Values by dotted name, for each file of :data:`PINNED` that the command of that name wrote."""
    for pattern in PINNED if name == "quickstart" else PINNED[:-2]:
        for file in sorted(runs.glob(pattern.format(name=name))):
            yield (
                str(file.relative_to(runs)),
                {key: value for key, value in values_of(file) if not VOLATILE.search(key)},
            )


def by_setting(values: dict[str, Any]) -> dict[str, Any]:
    """Values of rows named by their setting instead of their place, whether of a table.json, or old or new rows."""
    rows: dict[str, dict[str, Any]] = {}
    for name, value in values.items():
        match = re.fullmatch(r"(rows\.)?(\d+)\.(.+)", name)
        if match and not (match[1] and match[3] == "nfe"):  # the quickstart's did not count the readout's passes
            rows.setdefault(match[2], {})[match[3]] = value
    named = {}
    for row in rows.values():
        axes = {name.removeprefix("setting."): value for name, value in row.items()}
        gamma = axes.get("reinjection")
        gamma = f"{gamma:g}" if isinstance(gamma, float) else gamma
        label = " ".join(
            f"{part}" for part in (axes.get("name"), axes.get("readout"), axes.get("num_steps"), gamma) if part
        )
        for name, value in row.items():
            short = re.sub(r"^values\.(\w+)\.(interval|by_seed)", r"\1_\2", name)
            short = re.sub(r"^values\.(\w+)\.value$", r"\1", short)
            if value is not None and not name.startswith("setting.") and short not in ROW_AXES:
                named[f"{label}: {short}"] = value
    return named


def values_of(file: Path) -> Iterator[tuple[str, Any]]:
    """Dotted name and value of everything that a result file or weight file holds."""
    if file.suffix == ".json":
        yield from leaves("", json.loads(file.read_text()))
    elif file.suffix == ".jsonl":
        for index, line in enumerate(file.read_text().splitlines()):
            yield from leaves(f"{index}", json.loads(line))
    elif file.suffix == ".csv":
        with file.open(newline="") as stream:
            for row in csv.DictReader(stream):
                yield from ((f"{row['step']}.{name}", float(text)) for name, text in row.items() if text)
    elif file.suffix == ".safetensors":
        yield from tensor_values(list(load_file(file).values()))
    else:
        yield from tensor_values(list(tensors(torch.load(file, map_location="cpu", weights_only=False))))


def leaves(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """The numbers, texts and empty containers of nested JSON."""
    if isinstance(value, dict | list) and value:
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, item in items:
            yield from leaves(f"{name}.{key}".lstrip("."), item)
    else:
        yield name, value


def tensors(value: Any) -> Iterator[Tensor]:
    """All tensors in nested containers."""
    if isinstance(value, Tensor):
        yield value.detach()
    elif isinstance(value, dict | list | tuple):
        for item in value.values() if isinstance(value, dict) else value:
            yield from tensors(item)


def tensor_values(found: list[Tensor]) -> Iterator[tuple[str, Any]]:
    """The digest over all tensors without their names, and the root mean square of each."""
    described = []
    for tensor in found:
        content = tensor.contiguous().cpu().reshape(-1).view(torch.uint8).numpy().tobytes()
        kind = f"{str(tensor.dtype).removeprefix('torch.')}{list(tensor.shape)}"
        rms = tensor.double().square().mean().sqrt().item() if tensor.numel() else 0.0
        described.append((kind, rms, hashlib.sha256(content).hexdigest()))
    described.sort()
    yield "digest", hashlib.sha256(repr([(kind, digest) for kind, _, digest in sorted(described)]).encode()).hexdigest()
    for index, (kind, rms, _) in enumerate(described):
        yield f"tensor {index} {kind}", rms


def compare(first: Path, second: Path, tolerance: float) -> int:
    """Print every pinned value that differs, and per file one line on it. Returns 1 if any does."""
    a, b = (json.loads((folder / "pins.json").read_text()) for folder in (first, second))
    problems = 0
    known = {name for name, _ in COMMANDS}
    for name in a | b:
        if name not in known:
            print(f"{name}: no longer pinned")
            continue
        if name not in a or name not in b:
            print(f"{name}: only in {first if name in a else second}")
            problems += 1
            continue
        for pins in (a, b):
            for file in [file for file in pins[name] if TABLES.search(file)]:
                pins[name][file.replace("table.json", "rows.jsonl")] = by_setting(pins[name].pop(file))
        first_names = {re.sub(r"\w+", lambda word: RENAMED.get(word[0], word[0]), file): file for file in a[name]}
        for file in first_names | b[name]:
            lines = differences(a[name].get(first_names.get(file, file)), b[name].get(file), tolerance)
            problems += len(lines)
            for line in lines:
                print(f"{name}: {file}: {line}")
    print(f"{problems} differences beyond a tolerance of {tolerance:g}" if problems else "all pinned values agree")
    return int(problems > 0)


def differences(a: dict[str, Any] | None, b: dict[str, Any] | None, tolerance: float) -> list[str]:
    """What differs between two documents. A digest counts where the tensors behind it differ, or at tolerance 0."""
    if a is None or b is None:
        return [f"only in the {'second' if a is None else 'first'}"]
    gone = {name: value for name, value in a.items() if name not in b and not GONE.search(name)}
    new = {name: value for name, value in b.items() if name not in a}
    lines = []
    for name in a.keys() & b.keys():
        if not (same(a[name], b[name], tolerance) or GONE.search(name)) and (name != "digest" or tolerance == 0):
            lines.append(f"{name}: {shown(a[name])} -> {shown(b[name])}")
    for name, value in gone.items():
        twin = next((other for other in new if same(value, new[other], tolerance)), None)
        if twin is None:
            lines.append(f"{name}: {shown(value)} -> gone")
        else:
            del new[twin]
    return sorted(lines)


def same(a: Any, b: Any, tolerance: float) -> bool:
    """Whether two values agree."""
    if isinstance(a, str) and isinstance(b, str):
        return a == b or RENAMED.get(a) == b
    if isinstance(a, bool | str | None) or isinstance(b, bool | str | None):
        return a == b
    if not isinstance(a, int | float) or not isinstance(b, int | float):
        return bool(a == b)
    return (math.isnan(a) and math.isnan(b)) or a == b or abs(a - b) <= tolerance * max(abs(a), 0.01)


def shown(value: Any) -> str:
    """A value on one line."""
    return repr(value)[:160]


def run() -> int:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    writing = commands.add_parser("write", help="run all commands and pin their results")
    writing.add_argument("folder", type=Path)
    writing.add_argument("--only", default="", help="names of commands with commas between; left out: all")
    comparing = commands.add_parser("compare", help="print what differs")
    comparing.add_argument("first", type=Path)
    comparing.add_argument("second", type=Path)
    comparing.add_argument("--tolerance", type=float, default=1e-5)
    options = parser.parse_args()
    if options.command == "write":
        return write(options.folder.resolve(), set(filter(None, options.only.split(","))))
    return compare(options.first, options.second, options.tolerance)


if __name__ == "__main__":
    sys.exit(run())
